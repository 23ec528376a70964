"""Inspectors on the device: the core's columns, versions and values, before anything is stored."""

import io
import subprocess
import sys

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edge_agent.errors import ConfigError, UninspectableError
from edge_agent.inspect import requested_steps, text_counts
from edge_agent.pictures.statistics import picture_facts
from edge_agent.rules.rule_filter import RuleFilter
from edge_agent.sections import InspectConfig
from edge_agent.sources.api import SampleBatch
from pipelines.contracts.registry import ContractSet
from pipelines.inspect.columns import inspected, step_columns
from pipelines.inspect.image import image_facts
from pipelines.inspect.run import count_patterns
from pipelines.policy.documents import parse_policy
from pipelines.policy.edge import edge_inspectors, edge_rules
from schemas.contract import Column, ColumnType, Contract, builtin_contract
from schemas.edge_policy import EdgeInspect, EdgePolicy, decode_edge_policy, encode_edge_policy
from schemas.ids import StreamName
from schemas.inspectors import PATTERNS, PICTURE_COLUMNS, TEXT_COLUMNS, VERSIONS
from schemas.policy import InspectStep

CAMERA = builtin_contract(StreamName("camera_frame"))
POLICY = parse_policy("""
id: sharp
streams: [camera_frame]
inspect: [{use: image}, {use: exif}]
sample: [{when: image_luma_mean < 20, rate: 0}]
priority: [{when: image_sharpness > 100, priority: 900}]
""")


class Book:
    """A policy in force, and what was told of it."""

    def __init__(self, policy: EdgePolicy | None) -> None:
        self.policy = policy
        self.suspended: dict[str, str] = {}
        self.blind: dict[str, int] = {}

    def current(self) -> EdgePolicy | None:
        return self.policy

    def suspend(self, stream: str, rule: str, reason: str) -> None:
        self.suspended[f"{stream}/{rule}"] = reason

    def uninspected(self, stream: str, inspector: str, samples: int, reason: str) -> None:
        assert reason
        self.blind[f"{stream}/{inspector}"] = self.blind.get(f"{stream}/{inspector}", 0) + samples


def picture(seed: int, width: int, height: int, form: str = "PNG", *, level: int = 255) -> bytes:
    pick = np.random.default_rng(seed)
    coarse = pick.integers(0, level, (height // 10 + 1, width // 10 + 1, 3))
    pixels = np.kron(coarse, np.ones((10, 10, 1)))[:height, :width].astype(np.uint8)
    body = io.BytesIO()
    Image.fromarray(pixels).save(body, form)
    return body.getvalue()


def pushed() -> EdgePolicy:
    """The policy as it reaches a device."""
    rules = edge_rules([POLICY], ContractSet.load(""))
    return decode_edge_policy(encode_edge_policy(EdgePolicy(1, 0, rules, inspect=edge_inspectors([POLICY], rules))))


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (40, 30), (200, 120), (512, 512)])
def test_a_picture_that_need_not_be_shrunk_has_the_core_s_values(form: str, width: int, height: int) -> None:
    body = picture(width, width, height, form)
    assert picture_facts(body) == image_facts(body)


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_grey_and_palette_pictures_have_the_core_s_values(mode: str) -> None:
    body = io.BytesIO()
    Image.open(io.BytesIO(picture(3, 60, 40))).convert(mode).save(body, "PNG")
    assert picture_facts(body.getvalue()) == image_facts(body.getvalue())


@pytest.mark.parametrize(("width", "height", "form"), [(800, 600, "PNG"), (1920, 1080, "JPEG"), (1300, 2000, "JPEG")])
def test_a_larger_picture_has_them_but_for_how_two_libraries_round(width: int, height: int, form: str) -> None:
    body = picture(7, width, height, form)
    here, core = picture_facts(body), image_facts(body)
    assert here[:2] == core[:2]
    assert here[2:7] == pytest.approx(core[2:7], rel=0.01)
    assert (int(here[7], 16) ^ int(core[7], 16)).bit_count() <= 3


def test_names_types_and_versions_are_one_page() -> None:
    assert step_columns(InspectStep("image"))[:-2] == PICTURE_COLUMNS
    assert step_columns(InspectStep("text")) == TEXT_COLUMNS
    assert edge_inspectors([POLICY], edge_rules([POLICY], ContractSet.load(""))) == {
        "camera_frame": (EdgeInspect("image", VERSIONS["image"]),)
    }


@given(st.text(st.characters(max_codepoint=0x2FFF), max_size=120) | st.text("aA0 7.:-@=_+/'user tokn", max_size=80))
def test_texts_are_counted_as_in_the_core_or_left_to_it(text: str) -> None:
    try:
        here = text_counts(text)
    except UninspectableError:
        return
    core = count_patterns(pa.array([text], pa.string()), PATTERNS)
    assert here == tuple(core[column.name][0].as_py() for column in TEXT_COLUMNS)


def test_ordinary_log_lines_in_any_language_are_counted_here() -> None:
    line = "Zugriff für user=müller von 10.0.0.1 (ä@b.de, a.b@example.com), token=abcd1234, +49 30 1234567"
    core = count_patterns(pa.array([line], pa.string()), PATTERNS)
    assert text_counts(line) == tuple(core[column.name][0].as_py() for column in TEXT_COLUMNS)
    assert sum(text_counts(line)) >= 4


def test_rules_read_what_was_inspected_before_anything_is_stored() -> None:
    book = Book(pushed())
    rule_filter = RuleFilter(book, CAMERA, "cam-1", 100, lambda: 0.0)
    dark, lively = picture(1, 64, 48, level=10), picture(2, 64, 48)
    filtered = rule_filter(SampleBatch([1, 2, 3], {}, [dark, lively, b"no picture"]))
    assert {priority: list(group.payloads or ()) for priority, group in filtered.groups} == {900: [lively], 100: [b"no picture"]}
    assert (filtered.left_out, book.suspended) == ({"rule:sharp-sample-1": 1}, {})
    assert book.blind == {"camera_frame/image": 1}
    assert all(not group.columns for _, group in filtered.groups)  # the contract here has no such column: the core computes it


def test_columns_that_the_contract_has_are_stored_and_a_source_s_own_stay() -> None:
    contract = inspected(CAMERA, [POLICY])
    requested = requested_steps([InspectConfig(use="image")], contract)
    body = picture(2, 64, 48)
    filtered = RuleFilter(Book(None), contract, "cam-1", 100, lambda: 0.0, requested)(
        SampleBatch([1, 2], {"image_width": [None, 7]}, [body, body])
    )
    ((_, group),) = filtered.groups
    assert list(group.columns["image_width"]) == [64, 7]
    assert list(group.columns["image_luma_mean"]) == [image_facts(body)[2]] * 2


@pytest.mark.parametrize("step", [EdgeInspect("image", VERSIONS["image"] + 1), EdgeInspect("onnx", 1)])
def test_another_version_or_an_unknown_inspector_suspends_the_rules_that_read_it(step: EdgeInspect) -> None:
    book = Book(msgspec.structs.replace(pushed(), inspect={"camera_frame": (step,)}))
    filtered = RuleFilter(book, CAMERA, "cam-1", 100, lambda: 0.0)(SampleBatch([1], {}, [picture(1, 64, 48, level=10)]))
    assert len(filtered.groups) == 1
    assert all("which a device does not know of camera_frame; inspector" in reason for reason in book.suspended.values())
    assert len(book.suspended) == 2


def test_text_of_a_column_is_counted_for_rules() -> None:
    contract = Contract("notes", "1.0.0", (Column("message", ColumnType.STRING),))
    requested = requested_steps([InspectConfig(use="text", column="message")], msgspec.structs.replace(contract, columns=(
        *contract.columns, *TEXT_COLUMNS)))  # fmt: skip
    book = Book(None)
    rule_filter = RuleFilter(
        book, msgspec.structs.replace(contract, columns=(*contract.columns, *TEXT_COLUMNS)), "d", 1, lambda: 0, requested
    )
    ((_, group),) = rule_filter(SampleBatch([1, 2, 3], {"message": ["mail a@b.de", None, "x" * 70_000]})).groups
    assert list(group.columns["text_emails"]) == [1, None, None]
    assert book.blind == {"notes/text": 1}


def test_a_source_cannot_ask_for_what_the_stream_does_not_have() -> None:
    with pytest.raises(ConfigError, match="has no payload"):
        requested_steps([InspectConfig(use="image")], Contract("notes", "1.0.0", (Column("a", ColumnType.STRING),)))
    with pytest.raises(ConfigError, match="has no text column 'a'"):
        requested_steps([InspectConfig(use="text", column="a")], CAMERA)


def test_transparent_pictures_and_broken_bytes_are_left_to_the_core() -> None:
    clear = io.BytesIO()
    Image.new("RGBA", (8, 8)).save(clear, "PNG")
    for body in (clear.getvalue(), b"", b"\xff\xd8\xff", picture(1, 64, 48, "JPEG")[:200]):
        with pytest.raises(UninspectableError):
            picture_facts(body)


def test_no_library_is_loaded_before_a_step_asks() -> None:
    code = "import sys, edge_agent.agent, edge_agent.inspect; print({'numpy', 'PIL'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"
