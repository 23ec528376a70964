"""Only a policy that the trusted key signed, for this device and newer than its own, is applied; it outlives restarts."""

import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest

from catchment.runtime.clock import SystemClock
from edge_agent.documents import signature
from edge_agent.documents.signature import is_signed
from edge_agent.documents.trust import DocumentTrust
from edge_agent.errors import DocumentLaterError, UntrustedDocumentError
from edge_agent.rules import policy_store as store_module
from edge_agent.rules.policy_store import FILE_NAME, SEEN_NAME, NoPolicy, PolicyStore, read_seen
from schemas.edge_policy import (
    EdgeAction,
    EdgePolicy,
    EdgeRule,
    SignedEdgePolicy,
    decode_signed_edge_policy,
    signing_bytes,
)
from tests.fakes.device import eventually
from tests.fakes.policy_signer import PolicySigner

STREAM = "vehicle_telemetry"
RULE = EdgeRule("stands", '"speed_mps" < ?', EdgeAction.DROP, (1.0,))


def policy(version: int, *, devices: tuple[str, ...] = ()) -> EdgePolicy:
    return EdgePolicy(version, 0, {STREAM: (RULE,)}, devices)


@pytest.fixture(scope="module")
def signer() -> PolicySigner:
    return PolicySigner()


def open_store(signer: PolicySigner, folder: Path) -> PolicyStore:
    return open_store_for(signer.public_key, folder)


def open_store_for(public_key: str, folder: Path) -> PolicyStore:
    return PolicyStore(DocumentTrust((public_key,), "car-1"), (public_key,), folder, SystemClock())


def hand_in(store: PolicyStore, *bodies: bytes) -> None:
    """Run the store's thread until it has looked at each body."""
    for body in bodies:
        assert decides(store, body)


def decides(store: PolicyStore, body: bytes) -> bool:
    """Whether the desk can decide on a body now."""
    store.on_message(body)
    return store.take_pending()


def test_a_signed_policy_is_in_force_and_still_is_after_a_start_without_a_network(signer: PolicySigner, tmp_path: Path) -> None:
    store = open_store(signer, tmp_path)
    assert store.current() is None
    hand_in(store, signer.sign(policy(3)))
    assert store.current() == policy(3)
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o600
    again = open_store(signer, tmp_path)
    assert again.current() == policy(3)
    assert again.report().version == 3


def test_older_and_equal_versions_forged_ones_and_others_are_refused_and_counted(signer: PolicySigner, tmp_path: Path) -> None:
    store = open_store(signer, tmp_path)
    hand_in(store, signer.sign(policy(3)))
    for number, (body, fragment) in enumerate(
        [
            (signer.sign(policy(2)), "not newer"),
            (signer.sign(msgspec.structs.replace(policy(3), streams={})), "not newer"),
            (PolicySigner().sign(policy(4)), "trusted key"),
            (signer.sign(policy(4, devices=("car-2",))), "other devices"),
            (b"{}", "not a signed edge policy"),
            (b"\xff" * 2_000_000, "above the limit"),
        ],
        1,
    ):
        hand_in(store, body)
        assert store.report().refused == number
        assert fragment in store.report().reason
        assert store.current() == policy(3)
    assert open_store(signer, tmp_path).current() == policy(3)


def test_a_changed_byte_of_the_signed_text_is_noticed(signer: PolicySigner, tmp_path: Path) -> None:
    signed = decode_signed_edge_policy(signer.sign(policy(1)))
    forged = msgspec.json.encode(SignedEdgePolicy(signed.policy.replace("1.0", "9.0"), signed.signature))
    store = open_store(signer, tmp_path)
    hand_in(store, forged)
    assert store.current() is None
    assert store.report().refused == 1


def test_what_the_core_signs_is_what_a_device_believes(tmp_path: Path) -> None:
    from pipelines.director import DocumentSigner, parse_key, write_key
    from pipelines.policy.edge import signed_message

    public_key = write_key(tmp_path / "policy.pem")
    message = signed_message(policy(5), DocumentSigner([parse_key((tmp_path / "policy.pem").read_bytes())]))
    store = open_store_for(public_key, tmp_path)
    hand_in(store, message)
    assert store.current() == policy(5)
    assert store.report().refused == 0


def test_the_same_message_again_costs_no_second_look(
    signer: PolicySigner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(signer, tmp_path)
    good, bad = signer.sign(policy(1)), PolicySigner().sign(policy(2))
    hand_in(store, good, bad)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("looked again"))
    hand_in(store, good, bad, b"")
    assert store.report().refused == 1
    assert store.current() == policy(1)


def test_rules_are_taken_away_by_a_signed_policy_without_any(signer: PolicySigner, tmp_path: Path) -> None:
    store = open_store(signer, tmp_path)
    hand_in(store, signer.sign(policy(1)), signer.sign(EdgePolicy(2, 0, {})))
    assert store.current() == EdgePolicy(2, 0, {})


def test_a_kept_policy_that_is_no_longer_what_was_signed_is_set_aside(signer: PolicySigner, tmp_path: Path) -> None:
    hand_in(open_store(signer, tmp_path), signer.sign(policy(1)))
    path = tmp_path / FILE_NAME
    path.write_bytes(path.read_bytes().replace(b"1.0", b"9.0"))
    store = open_store(signer, tmp_path)
    assert store.current() is None
    assert "kept on disk" in store.report().reason
    assert len(list(tmp_path.glob("policy.json.refused-*"))) == 1
    assert not path.exists()


@pytest.mark.parametrize("rot", [b"\0" * 500, None], ids=["zeros", "gone"])
def test_a_policy_that_rots_on_disk_makes_no_older_one_believed(signer: PolicySigner, tmp_path: Path, rot: bytes | None) -> None:
    store = open_store(signer, tmp_path)
    hand_in(store, signer.sign(policy(2)), signer.sign(policy(3)))
    if rot is None:
        (tmp_path / FILE_NAME).unlink()
    else:
        (tmp_path / FILE_NAME).write_bytes(rot)
    store = open_store(signer, tmp_path)
    assert store.current() is None
    hand_in(store, signer.sign(policy(2)))
    assert store.current() is None
    assert "version 2 is not newer than version 3" in store.report().reason
    hand_in(store, signer.sign(policy(3)))  # the broker keeps it: it comes again
    assert store.current() == policy(3)
    hand_in(store, signer.sign(policy(3, devices=("car-1",))))
    assert store.current() == policy(3)


@pytest.mark.parametrize("at", [0, 70])
def test_a_note_of_the_version_that_rots_refuses_nothing_new(signer: PolicySigner, tmp_path: Path, at: int) -> None:
    hand_in(open_store(signer, tmp_path), signer.sign(policy(3)))
    note = tmp_path / SEEN_NAME
    damaged = bytearray(note.read_bytes())
    damaged[min(at, len(damaged) - 1)] ^= 0x08
    note.write_bytes(damaged)
    store = open_store(signer, tmp_path)
    assert store.current() == policy(3)
    assert read_seen(tmp_path, signer.public_key) == 3  # written again
    hand_in(store, signer.sign(policy(2)))
    assert store.current() == policy(3)


@pytest.mark.slow
def test_a_kill_between_note_and_policy_keeps_the_rules_until_the_new_ones_come_again(
    signer: PolicySigner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(signer, tmp_path)
    hand_in(store, signer.sign(policy(3)))
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "write_atomic", lambda *_: _refuse())
        assert not decides(store, signer.sign(policy(4)))
    store = open_store(signer, tmp_path)
    assert store.current() == policy(3)
    hand_in(store, signer.sign(policy(4)))
    assert store.current() == policy(4)


def test_another_trusted_key_begins_its_versions_anew(signer: PolicySigner, tmp_path: Path) -> None:
    hand_in(open_store(signer, tmp_path), signer.sign(policy(9)))
    other = PolicySigner()
    store = open_store(other, tmp_path)
    hand_in(store, other.sign(policy(1)))
    assert store.current() == policy(1)


def _refuse() -> None:
    raise OSError(28, "No space left on device")


def test_a_check_that_cannot_be_made_is_made_later(signer: PolicySigner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hand_in(open_store(signer, tmp_path), signer.sign(policy(1)))
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    store = open_store(signer, tmp_path)
    assert store.current() is None
    assert store.report().refused == 0
    monkeypatch.undo()
    stop = threading.Event()
    thread = threading.Thread(target=store.run, args=(stop,))
    thread.start()
    eventually(lambda: store.current() is not None, 30)
    stop.set()
    thread.join(10)
    assert store.current() == policy(1)


def test_a_disk_that_refuses_keeps_the_old_rules_until_it_does_not(
    signer: PolicySigner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(signer, tmp_path)
    hand_in(store, signer.sign(policy(1)))

    monkeypatch.setattr(store_module, "write_atomic", lambda *_: _refuse())
    assert not decides(store, signer.sign(policy(2)))
    assert store.current() == policy(1)


def test_the_signature_is_checked_alike_with_and_without_cryptography(
    signer: PolicySigner, monkeypatch: pytest.MonkeyPatch
) -> None:
    from securesystemslib.signer import _key

    signed = decode_signed_edge_policy(signer.sign(policy(1)))
    text = signing_bytes(signed.policy)
    for missing in (False, True):
        if missing:
            monkeypatch.setattr(_key, "CRYPTO_IMPORT_ERROR", "not installed")
        assert is_signed(signer.public_key, signed.signature, text)
        assert not is_signed(signer.public_key, signed.signature, text + b" ")
        assert not is_signed(PolicySigner().public_key, signed.signature, text)


def test_a_checker_that_dies_is_no_verdict(signer: PolicySigner, monkeypatch: pytest.MonkeyPatch) -> None:
    signed = decode_signed_edge_policy(signer.sign(policy(1)))
    text, pairs = signing_bytes(signed.policy), [(signer.public_key, signed.signature)]
    with pytest.raises(UntrustedDocumentError):
        signature.check_signatures(text, [(PolicySigner().public_key, signed.signature)])
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/bin/false")
        with pytest.raises(DocumentLaterError, match="could not be checked"):
            signature.check_signatures(text, pairs)
    monkeypatch.setattr(signature, "CHECK_WITHIN_S", 0.0)
    with pytest.raises(DocumentLaterError, match="could not be checked"):
        signature.check_signatures(text, pairs)


def test_without_a_key_nothing_is_believed(tmp_path: Path) -> None:
    rules = NoPolicy()
    rules.on_message(b"anything")
    assert (rules.current(), rules.report(), list(tmp_path.iterdir())) == (None, None, [])
