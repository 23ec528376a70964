"""The rules in force: takes new policies from the downlink, keeps them on disk, and reports the outcome.

A policy is applied if a key this device trusts signed it, it is meant for this device, and it is not older than its own. It comes
as a signed document. Its older form, of a core of the release before, is still taken, but only from the keys of `[policy]`; both
forms count in one counter.
"""

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog
from msgspec import UNSET

from catchment.runtime.atomic_files import write_atomic
from catchment.runtime.clock import Clock
from edge_agent.config import AgentConfig
from edge_agent.documents.gate import AdmittedDocument, CounterFile, DocumentGate, NewestDocument
from edge_agent.documents.signature import check_signatures
from edge_agent.documents.trust import DocumentTrust, rules_trust
from edge_agent.errors import DocumentLaterError, ExpiredDocumentError, UntrustedDocumentError
from schemas.edge_policy import (
    MAX_EDGE_POLICY_BYTES,
    EdgePolicy,
    EdgeRules,
    decode_edge_policy,
    decode_signed_edge_policy,
    policy_in,
    rules_of,
    signing_bytes,
)
from schemas.errors import DocumentError, PolicyDocumentError
from schemas.reported import PolicyReport
from schemas.signed_document import DocumentKind, encode_body

log = structlog.get_logger(__name__)

# The highest policy version this device ever believed, in a file of its own: it outlives a policy file that rots.
SEEN_NAME = "policy.version"
_MAX_BYTES = 400


def read_seen(folder: Path, public_key: str) -> int:
    """The highest version noted under this key; 0 when none was, or when the note is no longer what was written."""
    path = folder / SEEN_NAME
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES)
    except FileNotFoundError:
        return 0
    except OSError as error:
        log.error("edge_policy_version_note_unreadable", error=str(error))  # noqa: TRY400
        return 0
    word, _, rest = text.partition(b" ")
    key = rest.partition(b" ")[0].decode(errors="replace")
    if not word.isdigit() or text != _note(int(word), key):
        log.error("edge_policy_version_note_damaged", hint="the version of the stored policy counts", file=str(path))
        return 0
    # A device that trusts another key counts from its first policy on.
    return int(word) if key == public_key else 0


def write_seen(folder: Path, public_key: str, version: int) -> None:
    """Note a version, durably, before the policy that bears it is in force.

    Raises:
        OSError: the disk refused; the note is as it was.
    """
    write_atomic(folder / SEEN_NAME, _note(version, public_key))


def _note(version: int, public_key: str) -> bytes:
    # The sum tells a rotten digit from a written one: a version that rot made high would refuse every policy to come.
    content = f"{version} {public_key}"
    return f"{content} {hashlib.sha256(content.encode()).hexdigest()}\n".encode()


Check = Callable[[bytes, list[tuple[str, str]]], None]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A policy that may be applied, and what to note of it before it is."""

    policy: EdgePolicy
    seen: NewestDocument


class PolicyAdmission:
    """Decides about policies of both forms. Used by one thread.

    Args:
        trust: whose signed documents are believed, and who this device is.
        older_keys: whose policies of the older form are believed.
        folder: the agent's state folder.
        clock: wall clock.
        check: checks signatures.
    """

    def __init__(
        self, trust: DocumentTrust, older_keys: Sequence[str], folder: Path, clock: Clock, check: Check = check_signatures
    ) -> None:
        self._device = trust.device
        self._older_keys = tuple(older_keys)
        self._folder = folder
        self._check = check
        self._counter = CounterFile(folder, DocumentKind.EDGE_POLICY, trust.keys)
        for key in self._older_keys:  # an agent of the release before noted it there
            self._counter.raise_to(NewestDocument(read_seen(folder, key)))
        self._gate = DocumentGate(DocumentKind.EDGE_POLICY, EdgeRules, trust, self._counter, clock, MAX_EDGE_POLICY_BYTES, check)

    def admit(self, body: bytes) -> Candidate:
        """Decide whether the policy in a message may be applied now.

        Raises:
            UntrustedDocumentError: forged, malformed, older, or for other devices.
            DocumentLaterError: it could not be checked now, or its time has not come.
        """
        return _candidate(self._gate.admit(body)) if is_document(body) else self._admit_older(body, self._counter.seen)

    def read_kept(self, body: bytes) -> Candidate:
        """Read the policy that is in force from before a restart: its counter and times are not judged again.

        Raises:
            UntrustedDocumentError: no longer what was signed, or not for this device.
            DocumentLaterError: it could not be checked now.
        """
        return _candidate(self._gate.read_kept(body)) if is_document(body) else self._admit_older(body, NewestDocument())

    def note(self, candidate: Candidate) -> None:
        """Note a policy, durably, before it is applied.

        Raises:
            OSError: the disk refused; it must not be applied.
        """
        self._counter.note(candidate.seen)
        version = self._counter.seen.counter
        for key in self._older_keys[:1]:  # for an agent of the release before, if it comes back
            if read_seen(self._folder, key) < version:
                write_seen(self._folder, key, version)

    def _admit_older(self, body: bytes, seen: NewestDocument) -> Candidate:
        try:
            signed = decode_signed_edge_policy(body)
            policy = decode_edge_policy(signed.policy)
        except PolicyDocumentError as error:
            raise UntrustedDocumentError(str(error)) from error
        candidate = Candidate(
            policy, NewestDocument(policy.version, hashlib.sha256(bytes(encode_body(rules_of(policy)))).hexdigest())
        )
        if policy.version <= seen.counter and not seen.is_same(policy.version, candidate.seen.digest):
            raise UntrustedDocumentError(f"version {policy.version} is not newer than version {seen.counter}, taken before")
        if policy.devices and self._device not in policy.devices:
            raise UntrustedDocumentError(f"version {policy.version} is for other devices")
        if not self._older_keys:
            raise UntrustedDocumentError("it is no signed document, and only a key in [policy] may sign the older form")
        self._check(signing_bytes(signed.policy), [(key, signed.signature) for key in self._older_keys])
        return candidate


class _Form(msgspec.Struct):
    document: object = None


def is_document(body: bytes) -> bool:
    """Whether a message holds a signed document. What cannot be read is taken for the older form, which refuses it."""
    try:
        return len(body) <= MAX_EDGE_POLICY_BYTES and msgspec.json.decode(body, type=_Form).document is not None
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False


def _candidate(admitted: AdmittedDocument[EdgeRules]) -> Candidate:
    try:
        return Candidate(policy_in(admitted.document), admitted.seen)
    except DocumentError as error:
        raise UntrustedDocumentError(str(error)) from error


FILE_NAME = "policy.json"
_LOOK_S = 0.5
_RETRY_S = 10.0
# A broker that sends policy after policy costs one check at a time, with rests in between.
_REST_S = 0.5


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
        """Look at what came down, one at a time, the newest only, until it is stopped."""
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
