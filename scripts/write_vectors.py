"""Write docs/vectors/*.json: messages as bytes, for people who implement the wire in another language.

Run it only when the wire changes on purpose; tests/schemas_wire/test_wire_vectors.py holds code and vectors together.
"""

import hashlib
import io
import json
from pathlib import Path

import pyarrow as pa
import zstandard
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from schemas.edge_policy import (
    EdgeAction,
    EdgePolicy,
    EdgeRule,
    SignedEdgePolicy,
    encode_edge_policy,
    encode_policy_message,
    encode_signed_edge_policy,
    rules_of,
    signing_bytes,
)
from schemas.envelope import ARROW_STREAM, JSON, ZSTD, EnvelopeHead, Span
from schemas.ids import DeviceId, Digest, StreamName
from schemas.parts import PartHead
from schemas.receipts import (
    Floor,
    ObjectState,
    Receipt,
    RefusedStream,
    ShareNotice,
    encode_object_state,
    encode_receipt,
    encode_share_notice,
)
from schemas.reported import DroppedRange, EpochReport, ModelReport, PolicyReport, Reported, StreamBooks, encode_reported
from schemas.rollout import (
    Desired,
    DesiredModels,
    PieceRequest,
    encode_desired,
    encode_piece_request,
    encode_signed_desired,
)
from schemas.signed_document import (
    EVERY_DEVICE,
    Addressees,
    Document,
    DocumentSignature,
    SignedMessage,
    encode_body,
    encode_document,
)
from schemas.signed_document import signing_bytes as document_bytes
from schemas.topics import Topics

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "vectors"
DEVICE = DeviceId("car-17")
STREAM = StreamName("vehicle_telemetry")
EPOCH = 1869169767219212288
CREATED_US = 1_780_000_000_000_000
TOPICS = Topics()
VECTOR_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PAYLOAD = b"0123456789abcdef"
DIGEST = Digest(hashlib.sha256(PAYLOAD).hexdigest())


def vector(name: str, about: str, topic: str, body: bytes, content_type: str | None = None, **more: object) -> None:
    """Write one vector; `more` holds properties and other facts of the packet."""
    document: dict[str, object] = {"about": about, "topic": topic, "content_type": content_type}
    document |= more
    document["body_hex"] = body.hex()
    (FOLDER / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")


def telemetry(first_us: int = CREATED_US) -> bytes:
    """Three rows; the second tells no steering angle."""
    batch = pa.record_batch(
        {
            "event_time": pa.array([first_us, first_us + 10_000, first_us + 20_000], pa.timestamp("us", tz="UTC")),
            "speed_mps": pa.array([11.5, 11.75, 12.0], pa.float64()),
            "steering_deg": pa.array([-2.5, None, -2.0], pa.float64()),
        }
    )
    return ipc(batch)


def frame() -> bytes:
    """One small picture's worth of bytes, in the envelope."""
    batch = pa.record_batch(
        {
            "event_time": pa.array([CREATED_US], pa.timestamp("us", tz="UTC")),
            "media_type": pa.array(["image/png"]),
            "payload": pa.array([PAYLOAD], pa.binary()),
            "payload_sha256": pa.array([str(DIGEST)]),
        }
    )
    return ipc(batch)


def ipc(batch: pa.RecordBatch) -> bytes:
    """The Arrow IPC stream of one batch."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def envelopes() -> None:
    """What goes up on up/<device>/<stream>."""
    head = EnvelopeHead(DEVICE, STREAM, ARROW_STREAM, Span(EPOCH, 4100, 3), "1.0.0", created_us=CREATED_US)
    topic = TOPICS.up(DEVICE, STREAM)
    vector("envelope-arrow", "three samples as Arrow", topic, telemetry(), ARROW_STREAM, properties=head.to_properties())
    packed = EnvelopeHead(DEVICE, STREAM, ARROW_STREAM, Span(EPOCH, 4100, 3), "1.0.0", ZSTD, CREATED_US)
    squeezed = zstandard.compress(telemetry(), 3)
    vector("envelope-arrow-zstd", "the same, compressed", topic, squeezed, ARROW_STREAM, properties=packed.to_properties())
    unset = EnvelopeHead(
        DEVICE, STREAM, ARROW_STREAM, Span(EPOCH, 4100, 3), "1.0.0",
        created_us=CREATED_US, clock_boot="2f1c3a5e-8d0b-4d53-9f0e-1a2b3c4d5e6f", clock_shift_us=CREATED_US,
    )  # fmt: skip
    about = "three samples of a clock that counted from 1970, with what corrects them"
    body = telemetry(first_us=40_000_000)
    vector("envelope-arrow-unset-clock", about, topic, body, ARROW_STREAM, properties=unset.to_properties())
    camera = StreamName("camera_frame")
    one = EnvelopeHead(DEVICE, camera, ARROW_STREAM, Span(EPOCH, 0, 1), "1.0.0", created_us=CREATED_US)
    about = "one sample with its payload in the envelope"
    vector("envelope-arrow-payload", about, TOPICS.up(DEVICE, camera), frame(), ARROW_STREAM, properties=one.to_properties())
    row = {"event_time": "2026-05-28T20:26:40Z", "speed_mps": 11.5, "steering_deg": -2.5}
    numbered = EnvelopeHead(DEVICE, STREAM, JSON, Span(EPOCH, 4103, 1), "1.0.0")
    about = "one sample as JSON, from a device that numbers its samples"
    vector("envelope-json", about, topic, json.dumps(row).encode(), JSON, properties=numbered.to_properties())
    about = "two samples as JSON without any property: the bridge numbers them"
    rows = [row, {"speed_mps": 12}]
    vector("envelope-json-bare", about, topic, json.dumps(rows).encode(), None, properties=[])


def large_payloads() -> None:
    """Parts, the query, and the core's answers."""
    topic = TOPICS.parts(DEVICE, DIGEST)
    first = PartHead(DIGEST, 0, 10, len(PAYLOAD))
    vector("part", "the first 10 of a payload's 16 bytes", topic, PAYLOAD[:10], properties=first.to_properties())
    query = PartHead(DIGEST, 0, 0, len(PAYLOAD))
    vector("part-query", "which bytes are durable?", topic, b"", properties=query.to_properties())
    down = TOPICS.objects(DEVICE)
    state = encode_object_state(ObjectState(str(DIGEST), 16, [(0, 10)]))
    vector("object-state", "the first 10 bytes are", down, state, properties=[], retain=False)
    state = encode_object_state(ObjectState(str(DIGEST), 16, [(0, 10)], wait_ms=30_000, reason="no room"))
    about = "the last part was not taken for want of room: send it again in 30 s"
    vector("object-waits", about, down, state, properties=[], retain=False)
    state = encode_object_state(ObjectState(str(DIGEST), 16, [(0, 16)], settled=True))
    vector("object-settled", "all bytes are there and their hash is true", down, state, properties=[], retain=False)


def edge_policy() -> None:
    """Signed rules. The key is of this vector alone: its private half is the 32 bytes 0 to 31."""
    key = VECTOR_KEY
    rule = EdgeRule("standing", '"speed_mps" < ?', EdgeAction.SAMPLE, (0.1,), rate=0.01)
    text = encode_edge_policy(EdgePolicy(7, CREATED_US // 1000, {str(STREAM): (rule,)}))
    signed = SignedEdgePolicy(text, key.sign(signing_bytes(text)).hex())
    vector(
        "edge-policy",
        "of a standing car one sample in a hundred is kept: the form of the release before",
        TOPICS.policy(DEVICE),
        encode_signed_edge_policy(signed),
        properties=[],
        retain=True,
        public_key_hex=key.public_key().public_bytes_raw().hex(),
    )


def documents() -> None:
    """Signed documents, each with the exact bytes that were signed. The key is of these vectors alone: 32 bytes 0 to 31."""
    rule = EdgeRule("standing", '"speed_mps" < ?', EdgeAction.SAMPLE, (0.1,), rate=0.01)
    policy = EdgePolicy(7, CREATED_US // 1000, {str(STREAM): (rule,)})
    text = encode_edge_policy(policy)
    older = SignedEdgePolicy(text, VECTOR_KEY.sign(signing_bytes(text)).hex())
    everyone = Addressees(cohorts=(EVERY_DEVICE,))
    signed = sign(Document("edge-policy", 7, CREATED_US // 1000, everyone, encode_body(rules_of(policy))))
    about = "the same rules as a signed document, next to them the form of the release before"
    document_vector("edge-policy-signed", about, TOPICS.policy(DEVICE), signed, encode_policy_message(signed, older))
    models = DesiredModels((Desired("defects-3", "defects", 3, "defects/3.onnx", CREATED_US // 1000),))
    month_ms = 30 * 86_400_000
    order = Document(
        kind="desired",
        counter=CREATED_US // 1000,
        issued_ms=CREATED_US // 1000,
        to=Addressees(devices=(str(DEVICE),)),
        body=encode_body(models),
        expires_ms=CREATED_US // 1000 + month_ms,
    )
    signed = sign(order)
    about = "which model to run, as a signed document, next to it the form of the release before"
    document_vector("desired-signed", about, TOPICS.desired(DEVICE), signed, encode_signed_desired(signed, models))


def sign(document: Document) -> SignedMessage:
    """Sign with the vectors' key."""
    text = encode_document(document)
    signature = VECTOR_KEY.sign(document_bytes(document.kind, text)).hex()
    return SignedMessage(text, (DocumentSignature(VECTOR_KEY.public_key().public_bytes_raw().hex(), signature),))


def document_vector(name: str, about: str, topic: str, signed: SignedMessage, body: bytes) -> None:
    """Write one signed document, with what a reader needs to try its own check."""
    kind = json.loads(signed.document)["kind"]
    facts = {"public_key_hex": signed.signatures[0].key, "signed_hex": document_bytes(kind, signed.document).hex()}
    vector(name, about, topic, body, properties=[], retain=True, kind=kind, **facts)


def words() -> None:
    """Receipts, share notices, reports, desired state and piece requests."""
    notice = encode_share_notice(ShareNotice("bytes", "more than 33554432 bytes/s", 10_000, 33_554_432, 17))
    about = "the device is over its share: it sends nothing for 10 s, then no faster than that"
    vector("share-notice", about, TOPICS.share(DEVICE), notice, properties=[], retain=False)
    receipt = encode_receipt(Receipt(42, {"vehicle_telemetry": {str(EPOCH): [(0, 4100), (4103, 4104)]}}))
    vector(
        "receipt", "all but 4100..4102 of this epoch are settled", TOPICS.receipts(DEVICE), receipt, properties=[], retain=True
    )
    epochs = (EpochReport(str(STREAM), EPOCH, 4104, closed=False, dropped=(DroppedRange(17, 20, "evicted"),)),)
    books = (StreamBooks(str(STREAM), captured=4104, settled=4098, spooled=3, dropped={"evicted": 3}),)
    models = (ModelReport("defects", 3, "active"),)
    report = encode_reported(Reported(str(DEVICE), CREATED_US // 1000, "0.1.0", books, epochs, models, PolicyReport(7)))
    vector("reported", "a device's books, epochs, model and rules", TOPICS.reported(DEVICE), report, properties=[], retain=True)
    desired = encode_desired(Desired("defects-3", "defects", 3, "defects/3.onnx", CREATED_US // 1000))
    vector(
        "desired",
        "which model to run: the form of the release before, unsigned",
        TOPICS.desired(DEVICE),
        desired,
        properties=[],
        retain=True,
    )
    request = encode_piece_request(PieceRequest("metadata/timestamp.json", 0, 65_536))
    vector("piece-request", "the first piece of a file of the model repository", TOPICS.model_get(DEVICE), request, properties=[])


def receipts() -> None:
    """A receipt with all that it may say, and a further page of one."""
    refused = RefusedStream(120, in_row=120, reason="speed_mps: above the maximum of N")
    floored = Receipt(
        43, {STREAM: {str(EPOCH): [(4103, 4104)]}}, floors={STREAM: Floor(str(EPOCH), 4100)}, refused={STREAM: refused}, pages=2
    )
    about = "below 4100 all is settled or closed; the core refuses all that it settles of the stream; one more page follows"
    vector("receipt-floor", about, TOPICS.receipts(DEVICE), encode_receipt(floored), properties=[], retain=True)
    page = Receipt(43, {STREAM: {str(EPOCH): [(4106, 4107)]}}, page=1, pages=2)
    topic = TOPICS.receipt_page(DEVICE, 1)
    vector("receipt-page", "the second of two pages: more of the same", topic, encode_receipt(page), properties=[], retain=True)


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    envelopes()
    large_payloads()
    words()
    receipts()
    edge_policy()
    documents()
    print(f"{len(list(FOLDER.glob('*.json')))} vectors in {FOLDER}")
