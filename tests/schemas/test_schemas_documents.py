"""Receipts, reports, rollouts, contracts and policies as documents."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.contract import (
    MAX_CONTRACT_BYTES,
    NAMES,
    ChipSpec,
    Column,
    ColumnType,
    Contract,
    PayloadSpec,
    builtin_contract,
    contract_from_plain,
    decode_contract,
    encode_contract,
)
from schemas.errors import ContractError, PolicyDocumentError, SchemaError
from schemas.ids import StreamName
from schemas.policy import Policy, Rule, policy_from_plain
from schemas.ranges import Ranges
from schemas.receipts import ObjectState, Receipt, decode_object_state, decode_receipt, encode_object_state, encode_receipt
from schemas.reported import DroppedRange, EpochReport, ModelReport, Reported, StreamBooks, decode_reported, encode_reported
from schemas.rollout import (
    Desired,
    PieceRequest,
    decode_desired,
    decode_piece_request,
    encode_desired,
    encode_piece_request,
)

STREAM = StreamName("camera_frame")
SPANS = st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), max_size=5).map(lambda spans: list(Ranges.of(spans)))
JUNK = [b"", b"null", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"run": "x"}', b"3"]


@given(st.integers(0, 2**53), st.dictionaries(st.integers(0, 2**63 - 1), SPANS, max_size=4))
def test_a_receipt_survives_the_wire(run: int, epochs: dict[int, list[tuple[int, int]]]) -> None:
    receipt = Receipt(run, {STREAM: {str(epoch): spans for epoch, spans in epochs.items()}})
    read = decode_receipt(encode_receipt(receipt))
    assert read == receipt
    for epoch, spans in epochs.items():
        assert list(read.ranges(STREAM, epoch)) == spans
    assert not read.ranges(STREAM, -1)


@pytest.mark.parametrize("body", [*JUNK, b'{"run": 1, "settled": {"Bad Name": {}}}', b'{"run": 1, "settled": {"a": {"x": []}}}'])
def test_what_is_no_receipt_is_refused(body: bytes) -> None:
    with pytest.raises(SchemaError):
        decode_receipt(body)


def test_an_object_state_survives_the_wire_and_needs_a_digest() -> None:
    state = ObjectState("a" * 64, 10, [(0, 4)], settled=False, error="hash differs")
    assert decode_object_state(encode_object_state(state)) == state
    for body in [*JUNK, encode_object_state(ObjectState("x", 1, []))]:
        with pytest.raises(SchemaError):
            decode_object_state(body)


def test_a_report_survives_the_wire_and_its_books_say_whether_they_balance() -> None:
    books = StreamBooks("a", captured=10, settled=4, spooled=5, dropped={"quota": 1})
    epoch = EpochReport("a", 5, 10, closed=True, dropped=(DroppedRange(2, 3, "quota"),))
    reported = Reported("car-1", 1, "0.1", (books,), (epoch,), (ModelReport("m", 3, "active", refused=(2,)),))
    assert decode_reported(encode_reported(reported)) == reported
    assert books.is_balanced
    assert not StreamBooks("a", 10, 4, 5).is_balanced


@pytest.mark.parametrize(
    "epoch",
    [EpochReport("Bad", 1, 1, closed=False), EpochReport("a", -1, 1, closed=False), EpochReport("a", 1, -1, closed=False),
     EpochReport("a", 1, 5, closed=False, dropped=(DroppedRange(4, 6, "x"),)),
     EpochReport("a", 1, 5, closed=False, dropped=(DroppedRange(3, 3, "x"),))],
)  # fmt: skip
def test_a_report_that_contradicts_itself_is_refused(epoch: EpochReport) -> None:
    with pytest.raises(SchemaError):
        decode_reported(encode_reported(Reported("car-1", 1, "0.1", epochs=(epoch,))))


@pytest.mark.parametrize("decode", [decode_reported, decode_desired, decode_piece_request, decode_contract])
@pytest.mark.parametrize("body", JUNK)
def test_junk_is_refused_by_every_reader(decode: Any, body: bytes) -> None:
    with pytest.raises(SchemaError):
        decode(body)


def test_desired_state_and_piece_requests_survive_the_wire() -> None:
    desired = Desired("r1", "strip_defects", 3, "strip_defects/3.model.tar", 5)
    assert decode_desired(encode_desired(desired)) == desired
    request = PieceRequest("metadata/root.json", 0, 1024)
    assert decode_piece_request(encode_piece_request(request)) == request


@pytest.mark.parametrize(
    "path", ["../x", "metadata/../x", "/etc/passwd", "metadata/", "targets/a/b/c", "metadata/.x", "other/x", "metadata/a\n"]
)
def test_a_path_outside_the_repository_is_refused(path: str) -> None:
    with pytest.raises(SchemaError):
        PieceRequest(path, 0, 1)
    with pytest.raises(SchemaError):
        Desired("r", "m", 1, f"../{path}", 0)


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, 0), (0, 256 * 1024 + 1)])
def test_a_piece_has_a_bounded_length(offset: int, length: int) -> None:
    with pytest.raises(SchemaError):
        PieceRequest("metadata/root.json", offset, length)


@pytest.mark.parametrize("name", NAMES)
def test_a_contract_survives_its_json_and_its_digest_is_of_its_content(name: str) -> None:
    contract = builtin_contract(name)
    assert decode_contract(encode_contract(contract)) == contract
    assert len(contract.digest) == 64
    assert contract.digest != builtin_contract(NAMES[NAMES.index(name) - 1]).digest
    assert hash(contract) == hash(decode_contract(encode_contract(contract)))


def test_an_unknown_built_in_contract_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ContractError, match="camera_frame"):
        builtin_contract("nothing")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Column("tags", ColumnType.STRING),
        lambda: Column("Bad", ColumnType.STRING),
        lambda: Column("x", ColumnType.STRING, minimum=1),
        lambda: Column("x", ColumnType.INT32, allowed=("a",)),
        lambda: Column("x", ColumnType.INT32, max_length=1),
        lambda: ChipSpec("a", 8),
        lambda: ChipSpec("a", 64, overlap=64),
        lambda: ChipSpec("a", 64, level=32),
        lambda: Contract("a", "1.0", ()),
        lambda: Contract("a", "1.0.0", (Column("x", ColumnType.INT32), Column("x", ColumnType.INT64))),
        lambda: Contract("a", "1.0.0", (), chips=(ChipSpec("s", 64),)),
        lambda: contract_from_plain({"name": "a"}),
        lambda: decode_contract(b" " * (MAX_CONTRACT_BYTES + 1)),
    ],
)
def test_a_contract_that_contradicts_itself_is_refused(make: Any) -> None:
    with pytest.raises(ContractError):
        make()


def test_columns_are_found_by_name() -> None:
    contract = Contract("a", "1.0.0", (Column("x", ColumnType.INT32),), payload=PayloadSpec(("image/png",), 5))
    assert contract.column("x") == Column("x", ColumnType.INT32)
    assert contract.column("y") is None


def test_a_policys_version_is_that_of_its_content() -> None:
    first = Policy("p", ("slide",), (Rule("a", "mpp > 1"),))
    same = policy_from_plain({"id": "p", "streams": ["slide"], "rules": [{"tag": "a", "when": "mpp > 1"}]})
    other = Policy("p", ("slide",), (Rule("a", "mpp > 2"),))
    assert first.version == same.version != other.version
    assert len(first.version) == 12


@pytest.mark.parametrize(
    "plain",
    [
        None, [], {}, {"id": "p"}, {"id": "P", "streams": ["slide"], "rules": [{"tag": "a", "when": "x"}]},
        {"id": "p", "streams": [], "rules": [{"tag": "a", "when": "x"}]}, {"id": "p", "streams": ["slide"], "rules": []},
        {"id": "p", "streams": ["Bad"], "rules": [{"tag": "a", "when": "x"}]},
        {"id": "p", "streams": ["slide"], "rules": [{"tag": "A b", "when": "x"}]},
        {"id": "p", "streams": ["slide"], "rules": [{"tag": "a", "when": ""}]},
        {"id": "p", "streams": ["slide"], "rules": [{"tag": "a", "when": "x" * 4001}]},
    ],
)  # fmt: skip
def test_what_is_no_policy_is_refused(plain: Any) -> None:
    with pytest.raises(PolicyDocumentError):
        policy_from_plain(plain)
