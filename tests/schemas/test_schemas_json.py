"""Checked names are encoded as the texts they are."""

import pytest

from schemas.contract import Contract, decode_contract, encode_contract
from schemas.ids import DeviceId, Digest, StreamName, encode_json
from schemas.policy import Policy, Rule
from schemas.receipts import ObjectState, Receipt, decode_receipt, encode_object_state, encode_receipt
from schemas.reported import Reported, decode_reported, encode_reported


def test_a_checked_name_goes_over_the_wire_as_its_text() -> None:
    contract = Contract(StreamName("drive"), "1.0.0", ())
    assert encode_contract(contract) == encode_contract(Contract("drive", "1.0.0", ()))
    assert decode_contract(encode_contract(contract)) == contract
    assert (
        Policy("p", (StreamName("drive"),), (Rule("a", "x > 1"),)).version
        == Policy("p", ("drive",), (Rule("a", "x > 1"),)).version
    )
    assert b'"car-1"' in encode_reported(Reported(DeviceId("car-1"), 1, "1.0"))
    assert decode_reported(encode_reported(Reported(DeviceId("car-1"), 1, "1.0"))).device == "car-1"
    assert b'"digest":"abab' in encode_object_state(ObjectState(Digest("ab" * 32), 4, []))
    receipt = Receipt(1, {StreamName("drive"): {"7": [(0, 1)]}})
    assert decode_receipt(encode_receipt(receipt)).settled == {"drive": {"7": [(0, 1)]}}


def test_what_is_no_part_of_the_language_is_refused() -> None:
    with pytest.raises((TypeError, NotImplementedError)):
        encode_json({"a": object()})
