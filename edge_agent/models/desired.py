"""Which models the core wants here: signed where this device trusts a director key, unsigned where it was never given one."""

import structlog

from catchment.runtime.clock import Clock
from edge_agent.config import AgentConfig
from edge_agent.documents.counter import CounterFile
from edge_agent.documents.gate import DocumentGate
from edge_agent.documents.inbox import DocumentInbox
from edge_agent.documents.trust import director_trust
from schemas.rollout import MAX_DESIRED_BYTES, DesiredModels
from schemas.signed_document import DocumentKind

log = structlog.get_logger(__name__)


def open_orders(config: AgentConfig, clock: Clock) -> DocumentInbox[DesiredModels] | None:
    """Build what admits signed desired states; None without `[director]`: then unsigned ones are followed, for this release."""
    trust = director_trust(config)
    if trust is None:
        action = "add the [director] table that `catchment director show` prints; the next release follows signed orders alone"
        log.warning("desired_state_unsigned", action=action)
        return None
    counter = CounterFile(config.state_dir, DocumentKind.DESIRED, trust.keys)
    gate = DocumentGate(DocumentKind.DESIRED, DesiredModels, trust, counter, clock, MAX_DESIRED_BYTES)
    return DocumentInbox(DocumentKind.DESIRED, gate, counter, clock, MAX_DESIRED_BYTES)
