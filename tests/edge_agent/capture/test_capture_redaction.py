"""Redaction: what a contract hides is hidden before the spool, and what cannot be hidden is not stored."""

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from catchment.runtime.clock import SystemClock
from edge_agent.capture.transforms import build_transforms, read_redaction_key
from edge_agent.clock_quality import ClockWatch
from edge_agent.errors import ConfigError
from edge_agent.sources.api import SampleBatch
from schemas.contract import Contract, decode_contract
from schemas.errors import ContractError
from tests.plant.present import present

KEY = b"0123456789abcdef0123456789abcdef"
SECRET = "anna@example.org"


def contract(*columns: dict[str, Any], **more: Any) -> Contract:
    return decode_contract(json.dumps({"name": "private", "version": "1.0.0", "columns": columns, **more}).encode())


def text(how: str, **more: Any) -> dict[str, Any]:
    return {"name": "who", "type": "string", "pii": "text", "redact": {"how": how, **more}}


def transform(made: Contract, batch: SampleBatch, key: bytes = KEY) -> tuple[SampleBatch, dict[str, int]]:
    transforms = build_transforms(made, None, key, ClockWatch(SystemClock()), None)
    return transforms(batch), transforms.rejects.counts


def only_payload(batch: SampleBatch) -> bytes:
    payload = present(batch.payloads)[0]
    assert isinstance(payload, bytes)
    return payload


def one(made: Contract, value: Any) -> Any:
    batch, counts = transform(made, SampleBatch([0], {made.columns[0].name: [value]}))
    assert counts == {}
    return batch.columns[made.columns[0].name][0]


def test_a_dropped_column_is_null() -> None:
    assert one(contract(text("drop")), SECRET) is None


def test_a_mask_keeps_only_the_end_and_of_short_texts_nothing() -> None:
    made = contract(text("mask", keep=4))
    assert one(made, "DE89370400440532013000") == "***3000"
    assert one(made, "12345678") == "***"


@given(st.text(min_size=1), st.text(min_size=1))
def test_keyed_hashes_are_equal_for_equal_texts_alone(first: str, second: str) -> None:
    made = contract(text("hash"))
    assert (one(made, first) == one(made, second)) == (first == second)
    assert len(one(made, first)) == 32


def test_a_keyed_hash_says_something_else_under_another_key_and_in_another_column() -> None:
    made = contract(text("hash"), {"name": "too", "type": "string", "redact": {"how": "hash"}})
    batch = SampleBatch([0], {"who": [SECRET], "too": [SECRET]})
    mine, _ = transform(made, batch)
    other, _ = transform(made, batch, b"f" * 32)
    assert len({mine.columns["who"][0], mine.columns["too"][0], other.columns["who"][0]}) == 3


@given(st.floats(-90, 90), st.sampled_from([0.01, 0.1, 0.5, 1.0]))
def test_a_coarse_position_stays_within_a_step_and_within_its_bounds(value: float, step: float) -> None:
    column = {"name": "lat", "type": "float64", "minimum": -90, "maximum": 90, "redact": {"how": "coarsen", "step": step}}
    coarse = one(contract(column), value)
    assert -90 <= coarse <= 90
    assert abs(value - coarse) <= step * (1 + 1e-9)
    assert math.isclose(coarse / step, round(coarse / step), abs_tol=1e-6)


def test_times_are_cut_to_whole_steps() -> None:
    made = contract({"name": "n", "type": "int32"}, event_time_step_s=3600)
    batch, _ = transform(made, SampleBatch([7_200_000_001, 7_199_999_999], {"n": [1, 2]}))
    assert list(batch.event_time_us) == [7_200_000_000, 3_600_000_000]


def test_a_row_that_cannot_be_redacted_is_not_stored_and_counted_without_its_content() -> None:
    column = {"name": "lat", "type": "float64", "redact": {"how": "coarsen", "step": 1.0}}
    batch, counts = transform(contract(column), SampleBatch([1, 2, 3], {"lat": [1.5, math.nan, 2.5]}))
    assert list(batch.event_time_us) == [1, 3]
    assert counts == {"row: cannot be redacted: column lat: no number to coarsen": 1}


def test_without_a_key_a_contract_that_hashes_is_refused_at_the_start() -> None:
    with pytest.raises(ConfigError, match="redaction"):
        transform(contract(text("hash")), SampleBatch([0], {"who": ["x"]}), b"")


def test_a_short_key_is_no_key(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("short\n")
    with pytest.raises(ConfigError, match="openssl"):
        read_redaction_key(path)
    with pytest.raises(ConfigError, match="openssl"):
        read_redaction_key(tmp_path / "none")


@pytest.mark.parametrize(
    "column",
    [
        {"name": "n", "type": "int32", "redact": {"how": "mask"}},
        {"name": "n", "type": "string", "redact": {"how": "coarsen", "step": 1.0}},
        {"name": "n", "type": "string", "required": True, "redact": {"how": "drop"}},
        {"name": "n", "type": "string", "max_length": 8, "redact": {"how": "hash"}},
        {"name": "n", "type": "int32", "redact": {"how": "coarsen"}},
        {"name": "n", "type": "string", "redact": {"how": "shred"}},
        {"name": "n", "type": "string", "redacted": {"how": "drop"}},
    ],
)
def test_a_contract_whose_redaction_cannot_work_is_no_contract(column: dict[str, Any]) -> None:
    with pytest.raises(ContractError):
        contract(column)


def picture(form: str = "JPEG", size: tuple[int, int] = (64, 48)) -> bytes:
    image = Image.effect_noise(size, 100).convert("RGB")
    out = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = "secret place"
    image.save(out, form, exif=exif)
    return out.getvalue()


def image_contract(**redact: Any) -> Contract:
    payload = {"media_types": ["image/jpeg", "image/png"], "max_bytes": 1 << 24, "redact": redact}
    return contract({"name": "boxes", "type": "string"}, payload=payload)


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_a_filled_region_is_black_the_rest_stays_and_metadata_goes(form: str) -> None:
    before = picture(form)
    batch, counts = transform(
        image_contract(how="fill", boxes=[[0.0, 0.0, 0.5, 1.0]]), SampleBatch([0], {"boxes": [None]}, [before])
    )
    assert counts == {}
    after = only_payload(batch)
    image, old = Image.open(io.BytesIO(after)), Image.open(io.BytesIO(before))
    assert max(image.crop((0, 0, 24, 48)).convert("L").tobytes()) < 16
    assert max(image.crop((40, 0, 64, 48)).convert("L").tobytes()) > 128
    assert b"secret place" in before
    assert b"secret place" not in after
    assert image.size == old.size


def test_regions_named_by_a_column_are_blurred_beyond_reading() -> None:
    boxes = json.dumps([[8, 8, 32, 32]])
    batch, _ = transform(image_contract(how="blur", column="boxes"), SampleBatch([0], {"boxes": [boxes]}, [picture("PNG")]))
    region = Image.open(io.BytesIO(only_payload(batch))).crop((8, 8, 40, 40)).convert("L")
    levels = np.asarray(region).astype(int)
    assert np.abs(np.diff(levels, axis=1)).max() < 40  # noise of 100 before


def test_labelme_shapes_are_understood() -> None:
    regions = json.dumps({"shapes": [{"points": [[0, 0], [63, 47]], "shape_type": "rectangle"}]})
    batch, _ = transform(image_contract(how="fill", column="boxes"), SampleBatch([0], {"boxes": [regions]}, [picture("PNG")]))
    assert max(Image.open(io.BytesIO(only_payload(batch))).crop((0, 0, 63, 47)).convert("L").tobytes()) == 0


@pytest.mark.parametrize(
    ("regions", "payload"),
    [
        (None, picture()),
        ("{}", picture()),
        ("[[0,0,1]]", picture()),
        ('[[0,0,"a",1]]', picture()),
        ("[[0,0,-1,1]]", picture()),
        ("[]", b"no picture at all"),
        ("[]", picture()[:200]),
        ("[]", b"GIF89a" + bytes(64)),
    ],
)
def test_a_picture_that_cannot_be_redacted_is_refused_and_counted(regions: str | None, payload: bytes) -> None:
    made = image_contract(how="fill", column="boxes")
    batch, counts = transform(made, SampleBatch([0, 1], {"boxes": [regions, "[]"]}, [payload, picture()]))
    assert list(batch.event_time_us) == [1]
    assert sum(counts.values()) == 1
    assert all(reason.startswith("row: cannot be redacted") for reason in counts)


@given(st.binary(max_size=64), st.text(max_size=32))
def test_no_bytes_and_no_text_get_past_the_wall(payload: bytes, regions: str) -> None:
    batch, counts = transform(image_contract(how="fill", column="boxes"), SampleBatch([0], {"boxes": [regions]}, [payload]))
    assert len(batch) == 0
    assert sum(counts.values()) == 1


def test_a_text_that_cannot_even_be_encoded_is_refused_not_passed_on() -> None:
    batch, counts = transform(contract(text("hash")), SampleBatch([1, 2], {"who": ["\ud800", "x"]}))
    assert list(batch.event_time_us) == [2]
    assert sum(counts.values()) == 1


def test_fields_of_each_object_of_a_list_are_hidden_as_columns_are() -> None:
    fields = [{"name": "who", "type": "string", "redact": {"how": "drop"}}, {"name": "n", "type": "int64"}]
    made = contract({"name": "people", "type": "list<struct>", "fields": fields})
    assert made.has_redaction
    assert one(made, [{"who": SECRET, "n": 1}, None, {"who": SECRET}]) == [{"who": None, "n": 1}, None, {"who": None}]
    assert one(made, None) is None
    batch, counts = transform(made, SampleBatch([0], {"people": [[SECRET]]}))
    assert (len(batch), counts) == (0, {"row: cannot be redacted: column people: no object": 1})


def test_fields_of_a_struct_are_hidden_as_columns_are() -> None:
    fields = [
        {"name": "who", "type": "string", "redact": {"how": "hash"}},
        {"name": "lat", "type": "float64", "redact": {"how": "coarsen", "step": 0.5}},
        {"name": "note", "type": "string", "redact": {"how": "drop"}},
        {"name": "n", "type": "int64"},
    ]
    made = contract({"name": "place", "type": "struct", "fields": fields})
    assert made.has_redaction
    found = one(made, {"who": SECRET, "lat": 52.7, "note": SECRET, "n": 1})
    assert isinstance(found, dict)
    assert (found["lat"], found["note"], found["n"], len(found["who"])) == (52.5, None, 1, 32)
    assert SECRET not in str(found)
    assert one(made, None) is None
    with pytest.raises(ConfigError, match="keyed hash"):
        transform(made, SampleBatch([0], {}), key=b"")
    batch, counts = transform(made, SampleBatch([0], {"place": [{"who": 5, "lat": None, "note": None, "n": 1}]}))
    assert (len(batch), counts) == (0, {"row: cannot be redacted: no text": 1})
