"""Whether the agent makes progress: a small file for `edge-agent status`, and the service manager's watchdog."""

import os
import socket
from pathlib import Path

import msgspec
import structlog

from catchment.runtime.atomic_files import write_unsynced
from edge_agent.errors import AgentError
from schemas.receipts import RefusedStream
from schemas.reported import DocumentReport, PolicyReport

HEALTH_NAME = "health.json"

log = structlog.get_logger(__name__)


class Health(msgspec.Struct, frozen=True):
    """One look at the running agent.

    Attributes:
        at_ms: when, milliseconds since 1970.
        since_ack_s: seconds since the broker last took a message; None when it never did.
        not_sent: messages the broker answered with "nobody listens", "not authorised" or "over quota".
        resent: envelopes sent again because no receipt came in time.
        rejected: source -> reason -> rows, cells and files that became no sample, since the agent started.
        left_out: source -> reason -> samples not stored because they said nothing new or could not be redacted.
        waiting_streams: the broker, or a proxy, hangs up on all of their envelopes.
        policy: the edge rules in force; None where no key is trusted.
        documents: what was taken of other signed documents.
        over_share: why the core does not take all that is sent; "" when it does.
        refused_topics: topic or filter -> why the broker refuses it.
        refused: stream -> what the core refuses of it; "" stands for messages that named no stream.
        failing: source -> why it does not run at this moment; it is tried again.
        sources: source -> runs, fails or ended.
    """

    at_ms: int
    pid: int
    is_connected: bool
    sources_running: int
    sent: int
    not_sent: int
    resent: int
    parked: int
    since_ack_s: float | None
    used_bytes: int
    max_bytes: int
    rss_bytes: int
    failure: str = ""
    rejected: dict[str, dict[str, int]] = {}
    left_out: dict[str, dict[str, int]] = {}
    waiting_streams: tuple[str, ...] = ()
    policy: PolicyReport | None = None
    documents: tuple[DocumentReport, ...] = ()
    failing: dict[str, str] = {}
    sources: dict[str, str] = {}
    refused_topics: dict[str, str] = {}
    over_share: str = ""
    refused: dict[str, RefusedStream] = {}


def write_health(state_dir: Path, health: Health) -> None:
    """Replace the health file. It is no data: it is not synced, to spare the flash.

    Raises:
        OSError: the disk refused.
    """
    write_unsynced(state_dir / HEALTH_NAME, msgspec.json.encode(health))


def read_health(state_dir: Path) -> Health | None:
    """The last health written; None when there is none.

    Raises:
        AgentError: it is damaged.
    """
    try:
        return msgspec.json.decode((state_dir / HEALTH_NAME).read_bytes(), type=Health)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise AgentError(f"{state_dir / HEALTH_NAME} cannot be read: {error}; the running agent writes it again") from error


def rss_bytes() -> int:
    """This process's resident memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def notify_service_manager(state: str) -> None:
    """Tell systemd `READY=1`, `WATCHDOG=1` or `STOPPING=1`, where the unit has a notify socket."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.connect("\0" + address[1:] if address.startswith("@") else address)
            sender.send(state.encode())
    except OSError as error:
        # Samples are worth more than being seen: who does not listen will ask again, or restart us.
        log.warning("service_manager_unreachable", state=state, error=str(error))
