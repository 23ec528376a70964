"""Ids, topics, envelopes and parts: what is accepted, refused, and survives the round trip."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.envelope import ARROW_STREAM, JSON, EnvelopeHead, Span, format_time, parse_time, read_head
from schemas.errors import EnvelopeError, IdError, SchemaError, TopicError
from schemas.ids import MAX_SEQ, DeviceId, Digest, SampleKey, StreamName, next_epoch
from schemas.parts import MAX_OBJECT_BYTES, MAX_PART_BYTES, PartHead, read_part_head
from schemas.receipts import decode_receipt
from schemas.topics import Kind, Topics

DEVICE, STREAM, DIGEST = DeviceId("car-1"), StreamName("camera_frame"), Digest("a" * 64)
DEVICES = st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True).map(DeviceId)
STREAMS = st.from_regex(r"[a-z][a-z0-9_]{0,62}", fullmatch=True).map(StreamName)


@pytest.mark.parametrize("text", ["", "-a", "A", "a_b", "a/b", "a b", "a\n", "ä", "a" * 64, "../x", "a+", "#"])
def test_a_malformed_device_id_is_refused(text: str) -> None:
    with pytest.raises(IdError):
        DeviceId(text)


@pytest.mark.parametrize("text", ["", "_a", "1a", "A", "a-b", "a/b", "a\n", "a" * 64, ".."])
def test_a_malformed_stream_name_is_refused(text: str) -> None:
    with pytest.raises(IdError):
        StreamName(text)


@pytest.mark.parametrize("text", ["", "a" * 63, "A" * 64, "g" * 64, "a" * 64 + "\n"])
def test_a_malformed_digest_is_refused(text: str) -> None:
    with pytest.raises(IdError):
        Digest(text)


@pytest.mark.parametrize(("epoch", "seq"), [(-1, 0), (0, -1), (2**63, 0), (0, 2**63)])
def test_a_sample_key_holds_64_bit_numbers_only(epoch: int, seq: int) -> None:
    with pytest.raises(IdError):
        SampleKey(DEVICE, STREAM, epoch, seq)


@given(st.integers(0, 2**60), st.integers(-(10**6), 2**42), st.integers(0, 2**64))
def test_the_next_epoch_is_always_above_the_last_whatever_the_clock_says(previous: int, now_ms: int, entropy: int) -> None:
    assert next_epoch(previous, now_ms, entropy) > previous


@given(DEVICES, STREAMS)
def test_every_upward_topic_is_parsed_back_to_its_parts(device: DeviceId, stream: StreamName) -> None:
    topics = Topics("site-1/line_2")
    up, parts = topics.parse(topics.up(device, stream)), topics.parse(topics.parts(device, DIGEST))
    assert (up.kind, up.device, up.stream, up.digest) == (Kind.UP, device, stream, None)
    assert (parts.kind, parts.device, parts.digest) == (Kind.PARTS, device, DIGEST)
    assert topics.parse(topics.reported(device)).kind is Kind.REPORTED
    assert topics.parse(topics.model_get(device)).kind is Kind.MODEL_GET


@pytest.mark.parametrize(
    "topic",
    ["", "catchment", "catchment/", "catchment/up", "catchment/up/car-1", "catchment/up/car-1/x/y", "catchment/up/CAR/x",
     "catchment/up/car-1/X",
     "other/up/car-1/x", "catchment/parts/car-1/abc", "catchment/down/car-1/receipts", "catchment/models/data/car-1",
     "catchment/up//x",
     "catchment/up/+/#", "catchmentup/car-1/x", "catchment/reported/car-1/x"],
)  # fmt: skip
def test_a_topic_that_is_not_upward_or_of_other_form_is_refused(topic: str) -> None:
    with pytest.raises(TopicError):
        Topics().parse(topic)


@pytest.mark.parametrize("namespace", ["", "/a", "a/", "a//b", "a/b/c/d/e", "a b", "a+", "#", "ä"])
def test_a_malformed_namespace_is_refused(namespace: str) -> None:
    with pytest.raises(TopicError):
        Topics(namespace)


SPANS = st.builds(Span, epoch=st.integers(0, 2**63 - 1), first_seq=st.integers(0, 2**62), count=st.integers(1, 1_000_000))


@given(DEVICES, STREAMS, SPANS, st.sampled_from(["", "zstd"]), st.none() | st.just("1.2.3"), st.none() | st.integers(0, 10**16))
def test_an_envelope_head_survives_its_properties(
    device: DeviceId, stream: StreamName, span: Span, encoding: str, version: str | None, created_us: int | None
) -> None:
    head = EnvelopeHead(device, stream, ARROW_STREAM, span, version, encoding, created_us)
    assert read_head(device, stream, ARROW_STREAM, [*head.to_properties(), ("vendor-x", "1")]) == head


FULL = EnvelopeHead(DEVICE, STREAM, ARROW_STREAM, Span(1, 0, 10), "1.0.0").to_properties()


@pytest.mark.parametrize(
    ("drop", "add"),
    [
        ("epoch", []), ("firstseq", []), ("samplecount", []), ("", [("epoch", "1")]), ("source", [("source", "/devices/other")]),
        ("epoch", [("epoch", "-1")]), ("epoch", [("epoch", "٣")]), ("epoch", [("epoch", "1" * 20)]),
        ("samplecount", [("samplecount", "0")]),
        ("samplecount", [("samplecount", "1000001")]), ("firstseq", [("firstseq", str(MAX_SEQ))]), ("", [("contentencoding",
        "gzip")]),
        ("dataschema", [("dataschema", "urn:catchment:contract:slide:1.0.0")]), ("dataschema", [("dataschema",
        "urn:catchment:contract:camera_frame:")]),
        ("", [("time", "yesterday")]), ("", [("time", "2026-01-01T00:00:00")]), ("", [("id", "y" * 1025)]),
    ],
)  # fmt: skip
def test_a_head_with_a_wrong_property_is_refused(drop: str, add: list[tuple[str, str]]) -> None:
    with pytest.raises(EnvelopeError):
        read_head(DEVICE, STREAM, ARROW_STREAM, [pair for pair in FULL if pair[0] != drop] + add)


def test_a_json_body_needs_no_numbers_and_an_arrow_body_does() -> None:
    assert read_head(DEVICE, STREAM, None, []) == EnvelopeHead(DEVICE, STREAM, JSON, None)
    for content_type in (ARROW_STREAM, "text/plain"):
        with pytest.raises(EnvelopeError):
            read_head(DEVICE, STREAM, content_type, [])


@given(st.integers(-(10**15), 10**17))
def test_a_time_survives_its_text_to_the_microsecond(micros: int) -> None:
    assert parse_time(format_time(micros)) == micros


@given(st.text(max_size=40))
def test_any_text_is_a_time_or_refused(text: str) -> None:
    try:
        assert isinstance(parse_time(text), int)
    except EnvelopeError as error:
        assert str(error)  # noqa: PT017 - both outcomes are fine


@given(st.integers(0, MAX_PART_BYTES), st.integers(0, 2**35))
def test_a_part_head_survives_its_properties(length: int, offset: int) -> None:
    head = PartHead(DIGEST, offset, length, offset + max(length, 1))
    assert read_part_head(DIGEST, length, head.to_properties()) == head
    assert head.is_query is (length == 0)


@pytest.mark.parametrize(
    ("offset", "length", "total"),
    [("0", 1, "0"), ("0", MAX_PART_BYTES + 1, str(2**30)), ("5", 6, "10"), ("-1", 1, "10"), ("", 1, "10"),
     ("0", 1, str(MAX_OBJECT_BYTES + 1)), ("²", 1, "9")],
)  # fmt: skip
def test_a_part_that_contradicts_itself_is_refused(offset: str, length: int, total: str) -> None:
    with pytest.raises(EnvelopeError):
        read_part_head(DIGEST, length, [("offset", offset), ("total", total)])


@pytest.mark.parametrize("epoch", ["²", "\uff11", "٣", "", "-1", "+1", "1_0", " 1", "01", "9" * 30])
def test_a_receipt_whose_epoch_is_not_a_plain_decimal_number_is_refused(epoch: str) -> None:
    with pytest.raises(SchemaError, match="epoch"):
        decode_receipt(msgspec.json.encode({"run": 1, "settled": {"slide": {epoch: [[0, 1]]}}}))


@pytest.mark.parametrize("name", ["offset", "total"])
def test_a_part_that_says_a_property_twice_is_refused(name: str) -> None:
    twice = [("offset", "0"), ("total", "10"), (name, "5")]
    with pytest.raises(EnvelopeError, match=f"{name}.*twice"):
        read_part_head(Digest("0" * 64), 1, twice)
