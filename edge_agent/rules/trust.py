"""Whether a policy may be applied here: signed by a key this device trusts, meant for it, and not older than its own.

A policy comes as a signed document. Its older form, of a core of the release before, is still taken, but only from the
keys of `[policy]`; both forms count in one counter.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from catchment.runtime.atomic_files import write_atomic
from catchment.runtime.clock import Clock
from edge_agent.documents.counter import CounterFile, Seen
from edge_agent.documents.gate import AdmittedDocument, DocumentGate
from edge_agent.documents.signature import check_signatures
from edge_agent.documents.trust import DocumentTrust
from edge_agent.errors import UntrustedDocumentError
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
from schemas.signed_document import DocumentKind, encode_body

# The highest policy version this device ever believed, in a file of its own: it outlives a policy file that rots.
FILE_NAME = "policy.version"
_MAX_BYTES = 400

log = structlog.get_logger(__name__)


def read_seen(folder: Path, public_key: str) -> int:
    """The highest version noted under this key; 0 when none was, or when the note is no longer what was written."""
    path = folder / FILE_NAME
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
    # Whoever trusts another key counts from its first policy on.
    return int(word) if key == public_key else 0


def write_seen(folder: Path, public_key: str, version: int) -> None:
    """Note a version, durably, before the policy that bears it is in force.

    Raises:
        OSError: the disk refused; the note is as it was.
    """
    write_atomic(folder / FILE_NAME, _note(version, public_key))


def _note(version: int, public_key: str) -> bytes:
    # The sum tells a rotten digit from a written one: a version that rot made high would refuse every policy to come.
    content = f"{version} {public_key}"
    return f"{content} {hashlib.sha256(content.encode()).hexdigest()}\n".encode()


Check = Callable[[bytes, list[tuple[str, str]]], None]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A policy that may be applied, and what to note of it before it is."""

    policy: EdgePolicy
    seen: Seen


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
            self._counter.raise_to(Seen(read_seen(folder, key)))
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
        return _candidate(self._gate.read_kept(body)) if is_document(body) else self._admit_older(body, Seen())

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

    def _admit_older(self, body: bytes, seen: Seen) -> Candidate:
        try:
            signed = decode_signed_edge_policy(body)
            policy = decode_edge_policy(signed.policy)
        except PolicyDocumentError as error:
            raise UntrustedDocumentError(str(error)) from error
        candidate = Candidate(policy, Seen(policy.version, hashlib.sha256(bytes(encode_body(rules_of(policy)))).hexdigest()))
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
