"""Lists of objects: declared, checked, carried and judged, and the same verdict on the device and in the core."""

import random
import re
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from catchment.rules.evaluator import EdgeEvaluator, EdgeLimits
from pipelines.contracts.arrow import arrow_type, json_schema, row_schema
from pipelines.contracts.check import ContractMismatchError, conform, reasons
from pipelines.contracts.json_rows import rows_from_json
from pipelines.contracts.odcs import load_odcs, to_odcs
from pipelines.errors import ExpressionError
from pipelines.expressions.expression import compile_expression, contract_columns
from pipelines.expressions.render import render
from pipelines.policy.engine import Tagger
from pipelines.training.select import expression_columns
from schemas.contract import Column, ColumnType, Contract, QualityRule, decode_contract, encode_contract
from schemas.errors import ContractError
from schemas.policy import Policy, Rule
from tests.pipelines.policy import expression_corpus as corpus

BOX = (
    Column("label", ColumnType.STRING, required=True, allowed=("car", "person")),
    Column("score", ColumnType.FLOAT32, minimum=0, maximum=1),
    Column("corners", ColumnType.LIST_FLOAT64, max_length=16),
)
CONTRACT = Contract(
    "probe",
    "1.0.0",
    (Column("boxes", ColumnType.LIST_STRUCT, fields=BOX, max_length=3), Column("speed", ColumnType.FLOAT64)),
    quality=(QualityRule("few_people", "count_items(boxes, item.label = 'person') < 3"),),
)
SCALARS = ("a", "b", "i", "j", "s", "t", "f", "at")
ITEM_COLUMNS = {"boxes": ColumnType.LIST_STRUCT} | {f"boxes[].{name}": corpus.COLUMNS[name] for name in SCALARS}
BOUNDS = ("too costly", "characters", "more than", "nested", "not for a device")
_NAME = re.compile(r"\b(a|b|i|j|s|t|f|at)\b(?!\()")
_LISTS = re.compile(r"\b[uvwk]\b")


def lists_of_objects(seed: int = 3) -> list[list[dict[str, Any] | None] | None]:
    """Lists of 0 to 5 objects of the hard values; some lists and objects are null."""
    pick = random.Random(seed)
    rows = corpus.hard_rows().select(list(SCALARS))
    micros = rows["at"].cast(pa.int64()).to_pylist()
    objects = [{**row, "at": at} for row, at in zip(rows.drop_columns(["at"]).to_pylist(), micros, strict=True)]
    made: list[list[dict[str, Any] | None] | None] = [None, [], [None]]
    return made + [[pick.choice([*objects, None]) for _ in range(pick.randint(0, 5))] for _ in range(corpus.ROWS - 3)]


def condition(writer: corpus.Writer) -> str:
    """A random condition of the language over an object's fields."""
    while True:
        parts = re.split(r"('(?:[^']|'')*')", next(writer.truths()))
        if not any(_LISTS.search(part) for part in parts[::2]):
            return "".join(part if at % 2 else _NAME.sub(r"item.\1", part) for at, part in enumerate(parts))


def differing(count: int, seed: int) -> list[str]:
    """Expressions over lists of objects whose verdicts differ between the engines."""
    writer, values = corpus.Writer(seed), lists_of_objects()
    types = [pa.field(name, corpus.hard_rows().schema.field(name).type) for name in SCALARS]
    frame = pl.DataFrame(pl.from_arrow(pa.table({"boxes": pa.array(values, pa.list_(pa.struct(types)))})))
    found = []
    for number in range(count):
        form = ("any_item(boxes, {})", "all_items(boxes, {})", "count_items(boxes, {}) > 1")[number % 3]
        text = form.format(condition(writer))
        try:
            compiled = compile_expression(text, ITEM_COLUMNS)
            rule = compiled.to_edge()
        except ExpressionError as error:
            if not any(bound in str(error) for bound in BOUNDS):
                raise
            continue
        evaluator = EdgeEvaluator([rule])
        (device,) = evaluator.evaluate({"boxes": values}, len(values))
        core = frame.select(compiled.to_polars().alias("v"))["v"].to_list()
        if core != device or evaluator.suspended:
            unequal = [each for each in zip(core, device, strict=True) if each[0] != each[1]]
            found.append(f"{text}: {evaluator.suspended} {unequal[:3]}")
    return found


def test_sixty_random_conditions_over_objects_give_the_same_verdict_on_both_engines() -> None:
    assert differing(60, 1) == []


@pytest.mark.slow
def test_many_random_conditions_over_objects_give_the_same_verdict_on_both_engines() -> None:
    assert differing(1_500, 2) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("any_item(boxes, item.label = 'car')", [None, False, False, True, True]),
        ("all_items(boxes, item.score > 0.5)", [None, True, False, True, False]),
        ("count_items(boxes, item.score > 0.05) = 2", [None, False, False, False, True]),
        ("any_item(boxes, TRUE)", [None, False, True, True, True]),
        ("list_length(boxes) = 2", [None, False, False, False, True]),
    ],
)
def test_a_condition_that_is_unknown_for_an_object_is_not_true_for_it(text: str, expected: list[bool | None]) -> None:
    first, second = {"label": "car", "score": 0.75}, {"label": None, "score": 0.25}
    values: list[Any] = [None, [], [None], [first], [first, second]]
    compiled = compile_expression(text, contract_columns(CONTRACT))
    table = pa.table({"boxes": pa.array(values, arrow_type(CONTRACT.columns[0]))})
    assert pl.DataFrame(pl.from_arrow(table)).select(compiled.to_polars().alias("v"))["v"].to_list() == expected
    assert EdgeEvaluator([compiled.to_edge()]).evaluate({"boxes": values}, 5)[0] == expected
    assert compile_expression(text, expression_columns(table.schema)) == compiled
    assert compile_expression(render(compiled.node), contract_columns(CONTRACT)).node == compiled.node


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("any_item(boxes, item.lable = 'car')", "did you mean 'item.label'"),
        ("any_item(boxes, speed > 3)", "unknown column 'speed'.*item.label"),
        ("any_item(speed, TRUE)", "list of objects is needed"),
        ("any_item(boxes, item.score)", "takes a condition, not number"),
        ("any_item(boxes)", "takes a list of objects and a condition"),
        ("boxes.label = 'car'", "unknown column"),
    ],
)
def test_a_condition_over_objects_that_does_not_fit_is_refused_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(ExpressionError, match=message):
        compile_expression(text, contract_columns(CONTRACT))


def test_a_list_of_too_many_objects_suspends_the_rule_and_no_other() -> None:
    columns = contract_columns(CONTRACT)
    rules = [compile_expression(text, columns).to_edge() for text in ("any_item(boxes, item.score > 0)", "speed > 1")]
    evaluator = EdgeEvaluator(rules, EdgeLimits(max_items=10))
    many: list[Any] = [[{"score": 1.0}] * 11]
    assert evaluator.evaluate({"boxes": many, "speed": [2.0]}, 1) == [[None], [True]]
    assert list(evaluator.suspended) == [0]


def test_a_contract_with_boxes_is_written_and_read_as_odcs_and_as_json(tmp_path: Path) -> None:
    path = tmp_path / "probe.odcs.yaml"
    path.write_text(to_odcs(CONTRACT))
    assert load_odcs(path) == CONTRACT
    assert decode_contract(encode_contract(CONTRACT)) == CONTRACT
    boxes = json_schema(CONTRACT)["properties"]["boxes"]
    assert (boxes["type"], boxes["maxItems"]) == (["array", "null"], 3)
    assert boxes["items"]["properties"]["label"]["enum"] == ["car", "person"]
    with pytest.raises(ContractError, match="a struct or a list of them"):
        Column("boxes", ColumnType.LIST_STRUCT)
    with pytest.raises(ContractError, match="a struct in a struct"):
        Column("boxes", ColumnType.LIST_STRUCT, fields=(Column("inner", ColumnType.LIST_STRUCT, fields=BOX),))


def test_each_object_of_a_list_is_checked_and_the_reason_names_its_field() -> None:
    good = {"label": "car", "score": 0.5, "corners": [0.0, 1.0]}
    lists = [
        [good], [None], [], None, [good, {**good, "score": 2.0}], [{**good, "label": "tree"}], [{**good, "label": None}],
        [{**good, "corners": [float("inf")]}], [good] * 4, [{**good, "label": "person"}] * 3,
    ]  # fmt: skip
    table = pa.table({"event_time": pa.array([1_790_000_000_000_000] * 10, pa.timestamp("us", "UTC")), "boxes": lists})
    rows = conform(table, CONTRACT)
    assert rows.schema.equals(row_schema(CONTRACT))
    assert reasons(rows, CONTRACT).to_pylist() == [
        None, None, None, None, "boxes[].score: above the maximum of 1", "boxes[].label: not one of car, person",
        "boxes[].label: required, but null", "boxes[].corners: NaN or infinite", "boxes: longer than 3 items",
        "quality rule few_people: not fulfilled",
    ]  # fmt: skip


def test_objects_are_widened_field_by_field_and_an_unknown_field_is_refused() -> None:
    times = pa.array([1_790_000_000_000_000] * 3, pa.timestamp("us", "UTC"))
    narrow = pa.struct([("score", pa.int32()), ("label", pa.string())])
    other = pa.array([[{"score": 1, "label": "car"}], None, []], pa.list_(narrow))
    table = pa.table({"event_time": times, "boxes": other})
    assert conform(table, CONTRACT)["boxes"].to_pylist() == [[{"label": "car", "score": 1.0, "corners": None}], None, []]
    assert conform(table.slice(1), CONTRACT)["boxes"].to_pylist() == [None, []]
    with pytest.raises(ContractMismatchError, match="boxes"):
        conform(pa.table({"event_time": times[:1], "boxes": [[{"hue": 1}]]}), CONTRACT)


def test_objects_come_in_as_json_and_are_tagged() -> None:
    body = b'[{"boxes": [{"label": "car", "score": 0.9}]}, {"boxes": [{"lable": "car"}]}, {"boxes": {"label": "car"}}, {}]'
    found = rows_from_json(body, CONTRACT, 1_790_000_000_000_000)
    assert [row.reason for row in found.rejected] == ["boxes: unknown field 'lable'", "boxes: a list is needed, not an object"]
    tagger = Tagger.compile([Policy("p", ("probe",), (Rule("sure", "any_item(boxes, item.score > 0.8)"),))], CONTRACT)
    rows = pa.Table.from_batches([found.batch])
    assert tagger.tag(rows)[0].to_pylist() == [["sure"], []]
    assert tagger.count_errors(rows) == {}
