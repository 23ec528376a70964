"""The rules in force: takes new ones from the downlink, keeps them on disk, and says what became of them."""

import threading
from collections.abc import Sequence
from pathlib import Path

import structlog
from msgspec import UNSET

from catchment.runtime.atomic_files import write_atomic
from catchment.runtime.clock import Clock
from edge_agent.config import AgentConfig
from edge_agent.documents.trust import DocumentTrust, rules_trust
from edge_agent.errors import DocumentLaterError, ExpiredDocumentError, UntrustedDocumentError
from edge_agent.rules.trust import Candidate, PolicyAdmission
from schemas.edge_policy import MAX_EDGE_POLICY_BYTES, EdgePolicy
from schemas.reported import PolicyReport

FILE_NAME = "policy.json"
_LOOK_S = 0.5
_RETRY_S = 10.0
# A broker that sends policy after policy costs one check at a time, with rests in between.
_REST_S = 0.5

log = structlog.get_logger(__name__)


class PolicyStore:
    """Holds the policy in force. Methods may be called from any thread.

    Args:
        trust: whose signed documents are believed, and who this device is.
        older_keys: whose policies of the form of the release before are believed.
        folder: the agent's state folder; the signed policy is kept there as `policy.json`, what was the newest ever
            taken in `documents/` and, for the release before, as `policy.version`.
        clock: wall clock, for a policy's times and for the name of a refused file that is moved away.
    """

    def __init__(self, trust: DocumentTrust, older_keys: Sequence[str], folder: Path, clock: Clock) -> None:
        self._clock = clock
        self._path = folder / FILE_NAME
        self._admission = PolicyAdmission(trust, older_keys, folder, clock)
        self._waits_for = ""
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._body = b""
        self._pending: bytes | None = None
        self._policy: EdgePolicy | None = None
        self._refused = 0
        self._reason = ""
        self._last_refused = b""
        self._suspended: dict[str, str] = {}
        self._uninspected: dict[str, int] = {}
        self._load()

    def current(self) -> EdgePolicy | None:
        """The policy in force; None without one."""
        return self._policy

    def report(self) -> PolicyReport:
        """Report the rules in force and those refused."""
        with self._lock:
            version = 0 if self._policy is None else self._policy.version
            reason = self._waits_for or self._reason
            return PolicyReport(version, self._refused, reason, dict(self._suspended), dict(self._uninspected) or UNSET)

    def suspend(self, stream: str, rule: str, reason: str) -> None:
        """A rule cannot be applied; samples it would have decided about are kept."""
        name = f"{stream}/{rule}"
        with self._lock:
            is_news = self._suspended.get(name) != reason
            self._suspended[name] = reason
        if is_news:
            log.error("edge_rule_suspended", rule=name, reason=reason)

    def uninspected(self, stream: str, inspector: str, samples: int, reason: str) -> None:
        """An inspector could not look at some samples: their columns are null, and the core may fill them in."""
        name = f"{stream}/{inspector}"
        with self._lock:
            is_news = name not in self._uninspected
            self._uninspected[name] = self._uninspected.get(name, 0) + samples
        if is_news:
            log.warning("inspection_failing", inspector=name, reason=reason)

    def on_message(self, body: bytes) -> None:
        """A policy came down. An empty message takes nothing away: only a signed policy without rules does."""
        with self._lock:
            if not body or body in (self._body, self._last_refused):
                return
            self._pending = body[: MAX_EDGE_POLICY_BYTES + 1]
        self._wake.set()

    def run(self, stop: threading.Event) -> None:
        """Look at what came down, one at a time, the newest only, until told to stop."""
        while not stop.is_set():
            if not self._wake.wait(_LOOK_S):
                continue
            self._wake.clear()
            if not self.take_pending():
                stop.wait(_RETRY_S)
                self._wake.set()
            stop.wait(_REST_S)

    def take_pending(self) -> bool:
        """Decide on what came down, if anything did; False when that cannot be decided now, and the body waits on."""
        with self._lock:
            body, self._pending = self._pending, None
        if body is None or self._take(body):
            return True
        self._put_back(body)
        return False

    def _take(self, body: bytes) -> bool:
        """Put a policy in force or refuse it; False when that cannot be decided now."""
        known = 0 if self._policy is None else self._policy.version
        try:
            candidate = self._admission.admit(body)
            if candidate.policy.version == known:
                self._keep_in_force(body)
                return True
            self._admission.note(candidate)  # first: whatever becomes of the policy's file, nothing older is believed
            write_atomic(self._path, body)
        except UntrustedDocumentError as error:
            self._refuse(body, str(error))
            return True
        except (DocumentLaterError, OSError) as error:
            self._wait(body, error)
            return False
        self._put_in_force(candidate, body)
        return True

    def _put_in_force(self, candidate: Candidate, body: bytes) -> None:
        with self._lock:
            self._policy, self._body, self._suspended = candidate.policy, body, {}
            self._waits_for = ""
        log.info("edge_policy_active", version=candidate.policy.version, streams=len(candidate.policy.streams))

    def _keep_in_force(self, body: bytes) -> None:
        """The policy in force came again, signed with another time or key, or in the other form."""
        with self._lock:
            self._body, self._waits_for = body, ""

    def _wait(self, body: bytes, error: Exception) -> None:
        with self._lock:
            is_news, self._waits_for = self._waits_for != str(error), str(error)
            if isinstance(error, ExpiredDocumentError) and body != self._last_refused:
                # Counted once and looked at again: the device's clock may be what is wrong.
                self._refused, self._last_refused = self._refused + 1, body
        if is_news:
            log.warning("edge_policy_delayed", error=str(error), retry_in_s=_RETRY_S)

    def _put_back(self, body: bytes) -> None:
        with self._lock:
            if self._pending is None:  # what came meanwhile is newer
                self._pending = body

    def _refuse(self, body: bytes, reason: str) -> None:
        with self._lock:
            self._refused += 1
            self._reason, self._last_refused, self._waits_for = reason, body, ""
        log.error("edge_policy_refused", reason=reason)

    def _load(self) -> None:
        """Go on with the policy of the last run. A file that is no longer what was signed is moved to `*.refused-<ms>`."""
        try:
            body = self._path.read_bytes()
            # Its own file may be older than the note: the agent was killed between the two.
            candidate = self._admission.read_kept(body)
            self._policy, self._body = candidate.policy, body
            self._admission.note(candidate)
        except FileNotFoundError:
            return
        except UntrustedDocumentError as error:
            self._refuse(body, f"the policy kept on disk: {error}; moved away")
            self._move_refused(body)
        except DocumentLaterError as error:
            log.warning("stored_edge_policy_inactive", error=str(error))
            self.on_message(body)
        except OSError as error:
            if self._policy is None:
                log.error("stored_edge_policy_unreadable", hint="no rules apply until the next policy comes", error=str(error))  # noqa: TRY400
            else:
                log.warning("edge_policy_version_not_recorded", error=str(error))

    def _move_refused(self, body: bytes) -> None:
        try:
            write_atomic(self._path.with_name(f"{FILE_NAME}.refused-{self._clock.now_ms()}"), body)
            self._path.unlink()
        except OSError as error:
            log.warning("stored_edge_policy_not_moved", error=str(error))


class NoPolicy:
    """The stand-in where neither `[director]` nor `[policy]` names a key: no rules are accepted, every sample is kept."""

    def current(self) -> EdgePolicy | None:
        """Return no policy."""
        return None

    def report(self) -> PolicyReport | None:
        """Nothing to tell."""
        return None

    def suspend(self, stream: str, rule: str, reason: str) -> None:
        """There is no rule to suspend."""

    def uninspected(self, stream: str, inspector: str, samples: int, reason: str) -> None:
        """Log it, because there is no rule report here."""
        log.warning("samples_not_inspected", inspector=f"{stream}/{inspector}", samples=samples, reason=reason)

    def on_message(self, body: bytes) -> None:
        """A policy came that nobody could vouch for."""
        log.info("edge_policy_ignored", hint="configure a key in [director] or [policy]", size_bytes=len(body))


def open_rules(config: AgentConfig, clock: Clock) -> PolicyStore | NoPolicy:
    """Open the policy store, as configured."""
    trust = rules_trust(config)
    if trust is None:
        return NoPolicy()
    older_keys = () if config.policy is None else config.policy.keys
    return PolicyStore(trust, older_keys, config.state_dir, clock)
