"""A person who keeps the broker can keep orders back; he can make none, change none, and bring back none that was replaced."""

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.rules.policy_store import is_document
from schemas.edge_policy import EdgePolicy, encode_edge_policy
from schemas.edge_policy import signing_bytes as older_signing_bytes
from schemas.errors import DocumentError, SchemaError
from schemas.rollout import DesiredModels, encode_desired, encode_signed_desired
from schemas.signed_document import (
    Addressees,
    DocumentKind,
    DocumentSignature,
    SignedMessage,
    decode_document,
    decode_message,
    encode_document,
    encode_message,
    signing_bytes,
)
from tests.fakes.director import DAY_MS, DEVICE, NOW_MS, FakeDirector, HandClock, OrderTaker, check_here, order, wanted
from tests.fakes.policy_signer import PolicySigner


@pytest.fixture(scope="module")
def director() -> FakeDirector:
    return FakeDirector()


@pytest.fixture
def device(director: FakeDirector, tmp_path: Path) -> OrderTaker:
    return OrderTaker(tmp_path, director.public_key)


def hand(device: OrderTaker) -> HandClock:
    """Its clock, to be moved."""
    assert isinstance(device.clock, HandClock)
    return device.clock


def text_of(body: bytes) -> str:
    return decode_message(body).document


def test_an_order_signed_by_the_trusted_key_is_followed(director: FakeDirector, device: OrderTaker) -> None:
    assert device.take(director.order(5, 2)) == (2,)
    assert device.take(director.order(6, models=(wanted(3), wanted(1, "faces")))) == (3, 1)
    assert device.take(director.order(7, models=())) == ()
    assert (device.refused, device.reason, device.counter.seen.counter) == (0, "", 7)


def test_an_order_of_another_key_is_refused(director: FakeDirector, device: OrderTaker) -> None:
    stranger = FakeDirector()
    assert device.take(stranger.order(5)) is None
    assert "no key that this device trusts" in device.reason
    text = encode_document(order(5))
    forged = DocumentSignature(director.public_key, stranger.signature(text).signature)
    assert device.take(encode_message(SignedMessage(text, (forged,)))) is None
    assert "not of a trusted key" in device.reason
    assert device.refused == 2


def test_the_signature_of_one_order_is_none_of_another(director: FakeDirector, device: OrderTaker) -> None:
    first, second = (decode_message(director.order(counter, counter)) for counter in (5, 6))
    for text, signatures in ((second.document, first.signatures), (first.document, second.signatures)):
        assert device.take(encode_message(SignedMessage(text, signatures))) is None
        assert "not of a trusted key" in device.reason
    both = encode_message(SignedMessage(first.document, (*second.signatures, *first.signatures)))
    assert device.take(both) == (5,), "one good signature is enough"


def test_an_order_is_followed_behind_as_much_nonsense_as_comes(director: FakeDirector, device: OrderTaker) -> None:
    for number in range(100):
        assert device.take(b"nonsense %d" % number) is None
        assert device.take(director.order(4, 1)[: 40 + number]) is None
    assert device.take(director.order(7, 3)) == (3,)
    assert (device.refused, device.counter.seen.counter) == (200, 7)


@pytest.mark.parametrize("kind", [*DocumentKind, "erasure", "", "desired "])
def test_a_signature_over_one_kind_is_none_over_another(
    director: FakeDirector, device: OrderTaker, kind: DocumentKind | str
) -> None:
    as_desired = encode_document(order(5))
    if kind != DocumentKind.DESIRED:
        assert device.take(director.sign_text(as_desired, kind)) is None
        assert device.take(director.sign(order(5, kind=kind))) is None
        assert f"of kind {str(kind)!r}" in device.reason
        # The kind in the text is what the topic wants, the one that was signed is not.
        forged = director.signature(encode_document(order(5, kind=kind)), kind)
        assert device.take(encode_message(SignedMessage(as_desired, (forged,)))) is None
    assert device.counter.seen.counter == 0


def test_a_signature_over_the_older_form_of_rules_is_none_over_a_document(director: FakeDirector, device: OrderTaker) -> None:
    text = encode_document(order(5))
    older = director.key.sign(older_signing_bytes(text)).hex()
    assert device.take(encode_message(SignedMessage(text, (DocumentSignature(director.public_key, older),)))) is None
    policy = encode_edge_policy(EdgePolicy(1, 0, {}))
    with pytest.raises(Exception, match="trusted key"):
        check_here(older_signing_bytes(policy), [(director.public_key, director.signature(policy, "edge-policy").signature)])


@given(st.sampled_from(list(DocumentKind)), st.text(max_size=40), st.text("ab\n -", max_size=12), st.text(max_size=40))
def test_no_two_kinds_and_texts_share_their_signed_bytes(kind: DocumentKind, text: str, other_kind: str, other_text: str) -> None:
    if other_kind != kind and "\n" not in other_kind:
        assert signing_bytes(kind, text) != signing_bytes(other_kind, other_text)
    assert not signing_bytes(kind, text).startswith(older_signing_bytes(""))


@pytest.mark.parametrize(
    ("to", "covers"),
    [
        (Addressees(devices=("line-4",)), False),
        (Addressees(devices=("line-3x", "line")), False),
        (Addressees(devices=("line-4", DEVICE)), True),
        (Addressees(cohorts=("press-shop",)), True),
        (Addressees(cohorts=("press-shop-2",)), False),
        (Addressees(devices=("press-shop",)), False),
        (Addressees(cohorts=(DEVICE,)), False),
        (Addressees(cohorts=("all",)), True),
        (Addressees(devices=("all",)), False),
        (Addressees(devices=("line-4",), cohorts=("press-shop",)), True),
    ],
)
def test_an_order_for_another_device_or_cohort_is_refused(
    director: FakeDirector, tmp_path: Path, to: Addressees, covers: bool
) -> None:
    device = OrderTaker(tmp_path, director.public_key, cohorts=("press-shop",))
    assert (device.take(director.order(5, to=to)) is not None) is covers
    assert covers or "for other devices" in device.reason


def test_an_order_that_names_nobody_is_refused_and_cannot_be_made(director: FakeDirector, device: OrderTaker) -> None:
    with pytest.raises(DocumentError, match="names 1 to"):
        Addressees()
    wrong: tuple[object, ...] = (
        {}, {"devices": []}, {"devices": [], "cohorts": []}, {"devices": ["*"]}, {"cohorts": ["../x"]}, None, [],
    )  # fmt: skip
    for to in wrong:
        text = msgspec.json.encode({**json.loads(encode_document(order(5))), "to": to}).decode()
        assert device.take(director.sign_text(text)) is None
    assert device.counter.seen.counter == 0


def test_an_order_that_was_replaced_is_never_followed_again(director: FakeDirector, device: OrderTaker, tmp_path: Path) -> None:
    old, new = director.order(5, 1), director.order(6, 2)
    assert device.take(old) == (1,)
    assert device.take(new) == (2,)
    assert device.take(old) is None
    assert "counter 5 is not newer than 6" in device.reason
    again = OrderTaker(tmp_path, director.public_key)  # a restart, without a network
    assert again.take(old) is None
    assert again.take(new) == (2,)  # the retained message comes again
    assert again.refused == 1


def test_another_order_with_the_same_counter_is_refused(director: FakeDirector, device: OrderTaker) -> None:
    assert device.take(director.order(5, 1)) == (1,)
    assert device.take(director.order(5, 2)) is None
    assert device.take(director.order(5, 1, expires_ms=NOW_MS + DAY_MS)) == (1,)  # signed again: the same order
    assert device.refused == 1


def test_an_expired_order_is_refused_once_and_followed_when_the_clock_is_put_right(
    director: FakeDirector, device: OrderTaker
) -> None:
    hand(device).wall_ms = NOW_MS + 40 * DAY_MS
    body = director.order(5, expires_ms=NOW_MS + 30 * DAY_MS)
    assert device.take(body) is None
    for _ in range(5):
        hand(device).steady_s += 1_000
        assert device.look() is None
    assert device.refused == 1
    assert "by this device's clock" in device.reason
    hand(device).wall_ms, hand(device).steady_s = NOW_MS, hand(device).steady_s + 1_000
    assert device.look() == (1,)
    hand(device).wall_ms = NOW_MS + 400 * DAY_MS
    assert device.take(body + b" ") == (1,)  # what was taken in time stays in force


def test_an_order_is_followed_from_its_time_on(director: FakeDirector, device: OrderTaker) -> None:
    body = director.order(5, not_before_ms=NOW_MS + DAY_MS)
    assert device.take(body) is None
    assert "from 2027" in device.reason
    hand(device).sleep(DAY_MS / 1000 - 1)
    assert device.look() is None
    hand(device).sleep(400)
    assert device.look() == (1,)
    assert device.refused == 0


def test_an_order_that_waits_for_its_time_gives_way_to_a_newer_one(director: FakeDirector, device: OrderTaker) -> None:
    assert device.take(director.order(5, not_before_ms=NOW_MS + DAY_MS)) is None
    assert device.take(director.order(6, 2)) == (2,)
    hand(device).sleep(2 * DAY_MS / 1000)
    assert device.look() is None


def test_a_device_whose_clock_was_never_set_is_protected_by_the_counter(director: FakeDirector, tmp_path: Path) -> None:
    device = OrderTaker(tmp_path, director.public_key, clock=HandClock(12_000))
    assert device.take(director.order(5, 1, expires_ms=NOW_MS + 1)) == (1,)  # expired or not: it cannot know
    assert device.take(director.order(7, 2)) == (2,)
    assert device.take(director.order(6, 1)) is None
    assert device.take(director.order(8, 3, not_before_ms=NOW_MS - DAY_MS)) is None
    assert "the clock was never set" in device.reason
    hand(device).wall_ms, hand(device).steady_s = NOW_MS, 1_000.0
    assert device.look() == (3,)


def test_no_cut_off_message_is_followed(director: FakeDirector, device: OrderTaker) -> None:
    body = director.order(5)
    for length in range(len(body)):
        assert device.take(body[:length]) is None
    text = text_of(body)
    for length in range(0, len(text), 7):
        assert device.take(director.sign_text(text[:length])) is None
    assert device.counter.seen.counter == 0


def test_no_message_with_a_changed_byte_is_followed_as_another_order(director: FakeDirector, tmp_path: Path) -> None:
    body = director.order(5, 2)
    device = OrderTaker(tmp_path, director.public_key)
    for place in range(len(body)):
        for bit in (0x01, 0x20):
            changed = bytearray(body)
            changed[place] ^= bit
            assert device.take(bytes(changed)) in (None, (2,))
    assert device.counter.seen.counter in (0, 5)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"counter":5', '"counter":5,"counter":900'),
        ('"counter":5', '"counter":5,"c\\u006funter":900'),
        ('"kind":"desired"', '"kind":"edge-policy","kind":"desired"'),
        ('"to":{', '"to":{"devices":["line-4"],'),
        ('"models":[', '"models":[],"models":['),
        ('"version":1', '"version":1,"version":9'),
        ('"counter":5', '"counter":5,"later":{"a":1,"a":2}'),
        ('"counter":5', '"counter":5,"later":NaN'),
        ('"counter":5', '"counter":5,"later":-Infinity'),
    ],
)
def test_a_signed_text_that_two_readers_could_read_differently_is_refused(
    director: FakeDirector, device: OrderTaker, old: str, new: str
) -> None:
    text = text_of(director.order(5))
    assert old in text
    assert device.take(director.sign_text(text.replace(old, new, 1))) is None
    assert device.counter.seen.counter == 0


@pytest.mark.parametrize("key", ["document", "signatures", "d\\u006fcument"])
def test_a_message_with_a_key_twice_is_refused(director: FakeDirector, device: OrderTaker, key: str) -> None:
    name = json.loads(f'"{key}"')
    value = json.loads(director.order(6, 9))[name]
    body = f'{{"{key}":{json.dumps(value)},'.encode() + director.order(5)[1:]
    assert device.take(body) is None
    assert "twice" in device.reason


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("counter", 0), ("counter", -1), ("counter", 2**53), ("counter", 2**64), ("counter", 5.5), ("counter", "5"),
        ("counter", True), ("counter", None), ("kind", 1), ("kind", None), ("issued_ms", -1), ("not_before_ms", 2**60),
        ("expires_ms", 0), ("expires_ms", NOW_MS), ("expires_ms", "never"), ("critical", "x"), ("critical", ["x" * 200]),
        ("critical", ["x"] * 33), ("body", None), ("body", []), ("body", {}), ("body", {"models": None}),
        ("body", {"models": [{"name": "defects"}]}), ("to", {"devices": [DEVICE] * 10_001}),
    ],
)  # fmt: skip
def test_a_document_out_of_bounds_is_refused_although_it_is_signed(
    director: FakeDirector, device: OrderTaker, name: str, value: object
) -> None:
    plain = {**json.loads(text_of(director.order(5))), name: value}
    assert device.take(director.sign_text(json.dumps(plain))) is None
    assert device.refused == 1


@pytest.mark.parametrize(
    "body",
    [
        b"\xff", b"null", b"[]", b"{}", b'{"document":1,"signatures":[]}', b'{"document":"{}","signatures":[]}',
        b"[" * 60_000, b'{"document":"{}","x":' + b"[" * 60_000, b"x" * 70_000, b"\xef\xbb\xbf{}",
        b'{"document":"\\ud800","signatures":[{"key":"' + b"0" * 64 + b'","signature":"' + b"0" * 128 + b'"}]}',
    ],
)  # fmt: skip
def test_nonsense_is_refused_with_a_reason(device: OrderTaker, body: bytes) -> None:
    assert device.take(body) is None
    assert device.refused == 1
    assert device.reason


def test_a_message_above_the_limit_is_refused_before_it_is_read(director: FakeDirector, device: OrderTaker) -> None:
    plain = json.loads(director.order(5))
    body = json.dumps({**plain, "x": "y" * 65_536}).encode()
    assert device.take(body) is None
    assert "above the limit" in device.reason


def test_at_most_four_signatures_are_looked_at(director: FakeDirector, device: OrderTaker) -> None:
    text = encode_document(order(5))
    strangers = tuple(FakeDirector().signature(text) for _ in range(3))
    assert device.take(encode_message(SignedMessage(text, (*strangers, director.signature(text))))) == (1,)
    with pytest.raises(SchemaError):
        SignedMessage(text, (*strangers, *strangers))


def test_fields_that_a_newer_core_adds_are_ignored_unless_it_calls_them_critical(
    director: FakeDirector, device: OrderTaker
) -> None:
    plain = json.loads(text_of(director.order(5)))
    plain |= {"later": {"deep": [1]}, "to": {**plain["to"], "sites": ["a"]}}
    plain["body"] |= {"shadow": True}
    plain["body"]["models"][0] |= {"share": 0.5}
    assert device.take(director.sign_text(json.dumps(plain))) == (1,)
    for unknown in ("later", "to.sites", "body.shadow", "body.models.share"):
        critical = {**plain, "counter": 6, "critical": ["counter", "to.devices", "body.models", unknown]}
        assert device.take(director.sign_text(json.dumps(critical))) is None
        assert f"needs a newer agent: {unknown}" in device.reason
    known = {**plain, "counter": 6, "critical": ["counter", "to.devices", "body.models"]}
    assert device.take(director.sign_text(json.dumps(known))) == (1,)


def test_keys_are_changed_without_a_device_that_follows_nothing(director: FakeDirector, tmp_path: Path) -> None:
    old, new = director, FakeDirector()
    text = encode_document(order(5))
    both = encode_message(SignedMessage(text, (old.signature(text), new.signature(text))))
    for number, keys in enumerate([(old.public_key,), (old.public_key, new.public_key), (new.public_key,)]):
        assert OrderTaker(tmp_path / str(number), *keys).take(both) == (1,)
    device = OrderTaker(tmp_path / "x", new.public_key)
    assert device.take(old.order(6)) is None
    assert OrderTaker(tmp_path / "y").take(new.order(6)) is None  # no key could be read: nothing is followed


def test_a_counter_goes_on_when_keys_change_one_after_the_other(director: FakeDirector, tmp_path: Path) -> None:
    old, new = director, FakeDirector()
    assert OrderTaker(tmp_path, old.public_key).take(old.order(50)) == (1,)
    OrderTaker(tmp_path, old.public_key, new.public_key)  # no order comes while both are trusted
    device = OrderTaker(tmp_path, new.public_key)
    assert device.take(new.order(49)) is None
    assert device.take(new.order(51)) == (1,)


def test_a_device_that_trusts_none_of_the_keys_any_more_begins_to_count_again(director: FakeDirector, tmp_path: Path) -> None:
    other = FakeDirector()
    assert OrderTaker(tmp_path, director.public_key).take(director.order(50)) == (1,)
    assert OrderTaker(tmp_path, other.public_key).take(other.order(1)) == (1,)


def test_an_unsigned_order_beside_a_signed_one_says_nothing(director: FakeDirector, device: OrderTaker) -> None:
    models = DesiredModels((wanted(2),))
    signed = decode_message(director.order(5, 2))
    body = encode_signed_desired(signed, models)
    altered = {**json.loads(body), "version": 1, "target": "defects/1.onnx"}
    assert device.take(json.dumps(altered).encode()) == (2,)
    assert device.take(encode_desired(wanted(1))) is None
    assert "not a signed document" in device.reason


def test_the_end_of_a_retained_message_takes_nothing_away(director: FakeDirector, device: OrderTaker) -> None:
    assert device.take(director.order(5)) == (1,)
    assert device.take(b"") is None
    assert (device.refused, device.counter.seen.counter) == (0, 5)


@settings(max_examples=200)
@given(st.binary(max_size=300))
def test_whatever_comes_is_refused_by_name(body: bytes) -> None:
    with pytest.raises(DocumentError):
        decode_message(body)


@pytest.mark.slow
@settings(max_examples=200)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_whatever_is_signed_is_refused_by_name(value: object) -> None:
    with pytest.raises(DocumentError):
        decode_document(msgspec.json.encode(value).decode(), DocumentKind.DESIRED, DesiredModels)


def test_a_policy_of_the_older_form_is_distinguished_from_a_document() -> None:
    assert not is_document(PolicySigner().sign(EdgePolicy(1, 0, {})))
    assert not is_document(b"\xff")
    assert not is_document(b"[" * 100_000)
    assert is_document(b'{"policy":"","signature":"","document":"{}"}')
