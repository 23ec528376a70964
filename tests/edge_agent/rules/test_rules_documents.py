"""Rules come as signed documents; the form of the release before is still taken, and both count in one counter."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_agent.documents.trust import DocumentTrust
from edge_agent.rules.policy_store import FILE_NAME, PolicyStore, read_seen, write_seen
from pipelines.director import DocumentSigner
from pipelines.policy.edge import signed_message
from schemas.edge_policy import (
    MAX_EDGE_POLICY_BYTES,
    EdgeAction,
    EdgePolicy,
    EdgeRule,
    decode_edge_policy,
    decode_signed_edge_policy,
    rules_of,
    signing_bytes,
)
from schemas.signed_document import Addressees, Document, encode_body
from tests.fakes.director import DAY_MS, NOW_MS, FakeDirector, HandClock, check_here
from tests.fakes.policy_signer import PolicySigner

STREAM = "vehicle_telemetry"
RULE = EdgeRule("stands", '"speed_mps" < ?', EdgeAction.DROP, (1.0,))


def policy(version: int, *, devices: tuple[str, ...] = (), rule: EdgeRule = RULE) -> EdgePolicy:
    return EdgePolicy(version, 0, {STREAM: (rule,)}, devices)


class Device:
    """A device with its rules, and the keys of two kinds."""

    def __init__(self, folder: Path, *keys: str, older: tuple[str, ...] = (), clock: HandClock | None = None) -> None:
        self.clock = clock or HandClock()
        self.store = PolicyStore(DocumentTrust((*keys, *older), "car-1", frozenset({"north"})), older, folder, self.clock)

    def take(self, body: bytes) -> bool:
        """Whether it is decided."""
        self.store.on_message(body)
        return self.store.take_pending()

    @property
    def version(self) -> int:
        return self.store.report().version

    @property
    def reason(self) -> str:
        return self.store.report().reason


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The signature checks without their process: it is tried elsewhere."""
    from edge_agent.rules import policy_store

    monkeypatch.setattr(policy_store.PolicyAdmission.__init__, "__defaults__", (check_here,))


@pytest.fixture(scope="module")
def director() -> FakeDirector:
    return FakeDirector()


def document(counter: int, **more: Any) -> Document:
    body = encode_body(rules_of(more.pop("policy", policy(1))))
    fields = {"kind": "edge-policy", "to": Addressees(cohorts=("all",)), **more}
    return Document(counter=counter, issued_ms=NOW_MS, body=body, **fields)


def message(director: FakeDirector, made: EdgePolicy, expires_ms: int | None = None) -> bytes:
    """As the core of this release publishes it."""
    return signed_message(made, DocumentSigner([director.key]), expires_ms)


def test_rules_in_a_signed_document_are_in_force_and_outlive_a_restart_and_their_expiry(
    director: FakeDirector, tmp_path: Path
) -> None:
    device = Device(tmp_path, director.public_key)
    assert device.take(director.sign(document(3, expires_ms=NOW_MS + DAY_MS)))
    assert device.store.current() == EdgePolicy(3, NOW_MS, {STREAM: (RULE,)})
    late = HandClock(NOW_MS + 90 * DAY_MS)
    again = Device(tmp_path, director.public_key, clock=late)
    assert again.version == 3
    assert not again.take(director.sign(document(4, expires_ms=NOW_MS + DAY_MS)))
    assert (again.version, again.store.report().refused) == (3, 1)
    assert "expired" in again.reason


@pytest.mark.parametrize(
    ("to", "is_ours"),
    [
        (Addressees(devices=("car-1",)), True),
        (Addressees(devices=("car-2",)), False),
        (Addressees(cohorts=("north",)), True),
        (Addressees(cohorts=("south",)), False),
    ],
)
def test_rules_for_other_devices_or_cohorts_are_refused(
    director: FakeDirector, tmp_path: Path, to: Addressees, is_ours: bool
) -> None:
    device = Device(tmp_path, director.public_key)
    assert device.take(director.sign(document(3, to=to)))
    assert device.version == (3 if is_ours else 0)


def test_a_desired_state_is_no_policy_and_an_unsigned_one_is_none_either(director: FakeDirector, tmp_path: Path) -> None:
    device = Device(tmp_path, director.public_key)
    for body in (director.order(3), director.sign_text("{}", "edge-policy"), b'{"document":"{}"}', b'{"document":null}'):
        assert device.take(body)
    assert device.store.report().refused == 4


def test_the_message_of_this_core_is_read_by_the_agent_of_the_release_before_and_by_this_one(
    director: FakeDirector, tmp_path: Path
) -> None:
    body = message(director, policy(3))
    signed = decode_signed_edge_policy(body)  # all that the release before looks at
    assert decode_edge_policy(signed.policy) == policy(3)
    check_here(signing_bytes(signed.policy), [(director.public_key, signed.signature)])
    for number, keys in enumerate(((director.public_key,), ())):
        device = Device(tmp_path / str(number), *keys, older=(director.public_key,))
        assert device.take(body)
        assert device.version == 3


def test_rules_too_large_for_both_forms_travel_as_a_document_alone(director: FakeDirector, tmp_path: Path) -> None:
    large = EdgeRule("large", '"speed_mps" < ? -- ' + "x" * 15_000, EdgeAction.KEEP, (1.0,))
    made = EdgePolicy(3, 0, {STREAM: tuple(msgspec.structs.replace(large, id=f"r{n}") for n in range(50))})
    body = message(director, made)
    assert len(body) < MAX_EDGE_POLICY_BYTES
    assert "policy" not in msgspec.json.decode(body)
    device = Device(tmp_path, director.public_key)
    assert device.take(body)
    assert device.version == 3


def test_a_core_of_the_release_before_is_followed_only_by_who_trusts_its_policy_key(tmp_path: Path) -> None:
    signer = PolicySigner()
    believes = Device(tmp_path / "a", older=(signer.public_key,))
    assert believes.take(signer.sign(policy(3)))
    assert believes.version == 3
    director_alone = Device(tmp_path / "b", signer.public_key)
    assert director_alone.take(signer.sign(policy(3)))
    assert director_alone.version == 0
    assert "only a key in [policy]" in director_alone.reason


def test_both_forms_count_in_one_counter(director: FakeDirector, tmp_path: Path) -> None:
    signer = PolicySigner()
    device = Device(tmp_path, director.public_key, older=(signer.public_key,))
    assert device.take(signer.sign(policy(3)))
    assert device.take(director.sign(document(2)))
    assert device.version == 3
    assert device.take(director.sign(document(5)))
    assert device.take(signer.sign(policy(4)))
    assert device.version == 5
    assert "version 4 is not newer than version 5" in device.reason


def test_the_same_rules_in_the_other_form_are_no_replay(director: FakeDirector, tmp_path: Path) -> None:
    device = Device(tmp_path, older=(director.public_key,))
    older = message(director, policy(3))
    plain = msgspec.json.decode(older)
    assert device.take(msgspec.json.encode({name: plain[name] for name in ("policy", "signature")}))
    assert device.take(older)  # the core was upgraded, and pushed again
    assert device.take(message(director, msgspec.structs.replace(policy(3), issued_ms=5)))
    assert (device.version, device.store.report().refused) == (3, 0)
    other = msgspec.structs.replace(RULE, sql='"speed_mps" > ?')
    assert device.take(message(director, policy(3, rule=other)))
    assert device.store.report().refused == 1
    assert device.store.current() == policy(3)


def test_the_state_of_the_release_before_is_taken_over(tmp_path: Path) -> None:
    signer = PolicySigner()
    (tmp_path / FILE_NAME).write_bytes(signer.sign(policy(7)))
    write_seen(tmp_path, signer.public_key, 8)  # it was killed between note and file
    device = Device(tmp_path, older=(signer.public_key,))
    assert device.version == 7
    assert device.take(signer.sign(policy(6)))
    assert device.version == 7
    assert "version 6 is not newer than version 8" in device.reason
    assert device.take(signer.sign(policy(8)))
    assert device.version == 8


def test_the_release_before_finds_the_newest_version_where_it_looks(director: FakeDirector, tmp_path: Path) -> None:
    device = Device(tmp_path, older=(director.public_key,))
    assert device.take(message(director, policy(9)))
    assert read_seen(tmp_path, director.public_key) == 9


def test_a_key_file_that_cannot_be_read_costs_no_rules_that_are_kept(director: FakeDirector, tmp_path: Path) -> None:
    assert Device(tmp_path, director.public_key).take(director.sign(document(3)))
    without = Device(tmp_path)
    assert not without.take(director.sign(document(4)))
    assert (without.version, without.store.report().refused) == (0, 0)
    assert (tmp_path / FILE_NAME).exists()
    assert Device(tmp_path, director.public_key).version == 3


def test_rules_that_wait_for_their_time_are_applied_when_it_has_come(director: FakeDirector, tmp_path: Path) -> None:
    device = Device(tmp_path, director.public_key)
    body = director.sign(document(3, not_before_ms=NOW_MS + DAY_MS))
    assert not device.take(body)
    assert "to be applied from" in device.reason
    assert device.store.report().refused == 0
    device.clock.sleep(2 * DAY_MS / 1000)
    assert device.take(body)
    assert (device.version, device.reason) == (3, "")
