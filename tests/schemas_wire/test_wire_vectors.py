"""docs/vectors holds messages as bytes. Code and vectors must say the same, or somebody's device speaks another wire."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from pipelines.contracts.json_rows import rows_from_json
from schemas.contract import builtin_contract
from schemas.edge_policy import (
    EdgeRules,
    decode_edge_policy,
    decode_signed_edge_policy,
    encode_edge_policy,
    encode_signed_edge_policy,
    policy_in,
    signing_bytes,
)
from schemas.envelope import ARROW_STREAM, EnvelopeHead, read_head
from schemas.parts import read_part_head
from schemas.receipts import (
    decode_object_state,
    decode_receipt,
    decode_share_notice,
    encode_object_state,
    encode_receipt,
    encode_share_notice,
)
from schemas.reported import decode_reported, encode_reported
from schemas.rollout import DesiredModels, decode_desired, decode_piece_request, encode_desired, encode_piece_request
from schemas.signed_document import DocumentKind, decode_body, decode_document, decode_message
from schemas.signed_document import signing_bytes as document_bytes
from schemas.topics import Kind, Topics
from tests.plant.present import present

VECTORS = Path(__file__).resolve().parent.parent.parent / "docs" / "vectors"
WORDS: dict[str, tuple[Callable[[bytes], Any], Callable[[Any], bytes]]] = {
    "receipt": (decode_receipt, encode_receipt),
    "receipt-floor": (decode_receipt, encode_receipt),
    "receipt-page": (decode_receipt, encode_receipt),
    "object-state": (decode_object_state, encode_object_state),
    "object-waits": (decode_object_state, encode_object_state),
    "share-notice": (decode_share_notice, encode_share_notice),
    "object-settled": (decode_object_state, encode_object_state),
    "reported": (decode_reported, encode_reported),
    "desired": (decode_desired, encode_desired),
    "edge-policy": (decode_signed_edge_policy, encode_signed_edge_policy),
    "piece-request": (decode_piece_request, encode_piece_request),
}
DOCUMENTS: dict[str, tuple[DocumentKind, type[DesiredModels | EdgeRules]]] = {
    "desired-signed": (DocumentKind.DESIRED, DesiredModels),
    "edge-policy-signed": (DocumentKind.EDGE_POLICY, EdgeRules),
}
ENVELOPES = (
    "envelope-arrow",
    "envelope-arrow-zstd",
    "envelope-arrow-unset-clock",
    "envelope-arrow-payload",
    "envelope-json",
    "envelope-json-bare",
)
ARROW = tuple(name for name in ENVELOPES if "arrow" in name)


def load(name: str) -> tuple[dict[str, Any], bytes, list[tuple[str, str]]]:
    document = json.loads((VECTORS / f"{name}.json").read_text())
    return document, bytes.fromhex(document["body_hex"]), [(key, value) for key, value in document["properties"]]


def head_of(document: dict[str, Any], properties: list[tuple[str, str]]) -> EnvelopeHead:
    address = Topics().parse(document["topic"])
    assert address.kind is Kind.UP
    return read_head(address.device, present(address.stream), document["content_type"], properties)


def test_every_vector_is_tried() -> None:
    assert {path.stem for path in VECTORS.glob("*.json")} == {*WORDS, *ENVELOPES, *DOCUMENTS, "part", "part-query"}


@pytest.mark.parametrize("name", WORDS)
def test_a_word_of_the_wire_decodes_and_encodes_to_the_same_bytes(name: str) -> None:
    decode, encode = WORDS[name]
    _, body, _ = load(name)
    assert encode(decode(body)) == body


@pytest.mark.parametrize(
    "name", ["envelope-arrow", "envelope-arrow-zstd", "envelope-arrow-unset-clock", "envelope-arrow-payload", "envelope-json"]
)
def test_the_properties_of_an_envelope_read_and_write_to_the_same_pairs(name: str) -> None:
    document, _, properties = load(name)
    assert head_of(document, properties).to_properties() == properties


@pytest.mark.parametrize("name", ARROW)
def test_an_arrow_body_opens_with_arrow_alone_and_fits_its_head_and_contract(name: str) -> None:
    document, body, properties = load(name)
    head = head_of(document, properties)
    plain = zstandard.decompress(body) if head.encoding else body
    with pa.ipc.open_stream(plain) as reader:
        (batch,) = reader
    batch.validate(full=True)
    assert batch.num_rows == present(head.span).count
    assert batch.schema.field("event_time").type == pa.timestamp("us", tz="UTC")
    contract = builtin_contract(head.stream)
    standard = {"event_time", "payload", "payload_sha256"}
    assert all(field.name in standard or contract.column(field.name) for field in batch.schema)
    again = io.BytesIO()
    with pa.ipc.new_stream(again, batch.schema) as writer:
        writer.write_batch(batch)
    with pa.ipc.open_stream(again.getvalue()) as reader:
        assert reader.read_all() == pa.Table.from_batches([batch])


def test_the_compressed_body_holds_the_plain_one() -> None:
    _, plain, _ = load("envelope-arrow")
    _, packed, _ = load("envelope-arrow-zstd")
    assert zstandard.decompress(packed) == plain


@pytest.mark.parametrize(("name", "count"), [("envelope-json", 1), ("envelope-json-bare", 2)])
def test_a_json_body_gives_rows_of_its_contract(name: str, count: int) -> None:
    document, body, properties = load(name)
    head = head_of(document, properties)
    rows = rows_from_json(body, builtin_contract(head.stream), received_us=0)
    assert (rows.count, rows.rejected) == (count, ())
    assert head.content_type != ARROW_STREAM
    assert (head.span is None) == (name == "envelope-json-bare")


@pytest.mark.parametrize("name", ["part", "part-query"])
def test_a_part_reads_and_writes_to_the_same_pairs(name: str) -> None:
    document, body, properties = load(name)
    address = Topics().parse(document["topic"])
    part = read_part_head(present(address.digest), len(body), properties)
    assert part.to_properties() == properties
    assert part.is_query == (name == "part-query")


def test_the_rules_of_a_signed_policy_are_what_the_key_signed() -> None:
    document, body, _ = load("edge-policy")
    signed = decode_signed_edge_policy(body)
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(document["public_key_hex"]))
    key.verify(bytes.fromhex(signed.signature), signing_bytes(signed.policy))  # raises where it is not so
    policy = decode_edge_policy(signed.policy)
    assert [rule.id for rule in policy.streams["vehicle_telemetry"]] == ["standing"]
    assert encode_edge_policy(policy) == signed.policy


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_signed_document_is_what_the_key_signed_and_holds_its_order(name: str) -> None:
    facts, body, _ = load(name)
    kind, form = DOCUMENTS[name]
    message = decode_message(body)
    document = decode_document(message.document, kind, form)
    (signature,) = message.signatures
    assert (facts["kind"], facts["public_key_hex"]) == (kind.value, signature.key)
    assert bytes.fromhex(facts["signed_hex"]) == document_bytes(kind, message.document)
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(signature.key))
    key.verify(bytes.fromhex(signature.signature), bytes.fromhex(facts["signed_hex"]))  # raises where it is not so
    if kind is DocumentKind.DESIRED:
        assert document.to.covers("car-17", frozenset())
        assert decode_body(document, DesiredModels).models == (decode_desired(load("desired")[1]),)
    else:
        older = decode_signed_edge_policy(load("edge-policy")[1])
        assert policy_in(document) == decode_edge_policy(older.policy)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_beside_a_signed_document_the_release_before_finds_what_it_reads(name: str) -> None:
    _, body, _ = load(name)
    decode = decode_desired if name == "desired-signed" else decode_signed_edge_policy
    assert decode(body) == decode(load(name.removesuffix("-signed"))[1])
