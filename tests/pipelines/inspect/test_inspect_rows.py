"""Inspect steps over tables: nulls, errors, the cache, texts, models, and columns a device filled itself."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pyarrow as pa
import pytest
from onnx import TensorProto, helper

from pipelines.errors import ConfigError, CorruptLakeError
from pipelines.inspect import run as inspect_run
from pipelines.inspect.code import bind_code, code_path, store_code
from pipelines.inspect.columns import inspected, step_columns, step_digest
from pipelines.inspect.image import image_facts
from pipelines.inspect.run import check_step, inspect_rows
from pipelines.inspect.suspended import SuspensionBook
from pipelines.lake.lake import lake_at
from schemas.contract import ColumnType, builtin_contract
from schemas.policy import InspectStep, Policy, Rule

CAMERA = builtin_contract("camera_frame")
Draw = Callable[..., bytes]


def table(bodies: list[bytes | None], **columns: pa.Array) -> pa.Table:
    count = len(bodies)
    digests = [None if body is None else hashlib.sha256(body).hexdigest() for body in bodies]
    known = {"device": pa.array(["cam"] * count), "epoch": pa.array([1] * count), "seq": pa.array(range(count))}
    return pa.table({**known, "payload_sha256": pa.array(digests, pa.string()), **columns})


def looked(root: Path, bodies: list[bytes | None], step: InspectStep, **columns: pa.Array) -> pa.Table:
    return inspect_rows(lake_at(root), table(bodies, **columns), [step], lambda place: bodies[place])


def policy(*steps: InspectStep) -> Policy:
    return Policy("look", ("camera_frame",), (Rule("any", "seq >= 0"),), inspect=steps)


def test_a_bad_picture_has_nulls_and_a_reason_and_spoils_no_other(tmp_path: Path, draw: Draw) -> None:
    rows = looked(tmp_path, [draw(1), b"rubbish", None, draw(2)], InspectStep("image"))
    assert rows.column("image_width").to_pylist() == [200, None, None, 200]
    errors = rows.column("inspect_errors").to_pylist()
    assert errors[0] is errors[2] is errors[3] is None
    assert errors[1].startswith("image: not a picture")


def test_near_duplicates_of_a_burst_are_numbered_from_its_first(tmp_path: Path, draw: Draw) -> None:
    rows = looked(tmp_path, [draw(1), draw(1, quality=60), draw(1, shift=4), draw(2)], InspectStep("image"))
    assert rows.column("image_burst").to_pylist() == ["1-0", "1-0", "1-0", "1-3"]
    assert rows.column("image_burst_index").to_pylist() == [0, 1, 2, 0]


def test_the_same_bytes_are_looked_at_once_ever(tmp_path: Path, draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bytes] = []
    real = image_facts

    def counted(body: bytes) -> object:
        calls.append(body)
        return real(body)

    monkeypatch.setattr(inspect_run, "image_facts", counted)
    bodies: list[bytes | None] = [draw(1), draw(1), b"rubbish"]
    first = looked(tmp_path, bodies, InspectStep("image"))
    assert len(calls) == 2
    assert looked(tmp_path, bodies, InspectStep("image")).equals(first)
    assert len(calls) == 2
    looked(tmp_path, [draw(2)], InspectStep("image"))
    assert len(calls) == 3


def test_a_rotten_cache_costs_time_and_nothing_else(tmp_path: Path, draw: Draw) -> None:
    first = looked(tmp_path, [draw(1)], InspectStep("image"))
    (tmp_path / "cache" / "inspect.sqlite").write_bytes(b"rotten" * 1_000)
    assert looked(tmp_path, [draw(1)], InspectStep("image")).equals(first)


def test_what_a_device_computed_itself_stays(tmp_path: Path, draw: Draw) -> None:
    rows = looked(tmp_path, [draw(1), draw(1)], InspectStep("image"), image_luma_mean=pa.array([5.0, None]))
    assert rows.column("image_luma_mean")[0].as_py() == 5.0
    assert rows.column("image_luma_mean")[1].as_py() > 20


def test_texts_are_counted_by_the_ordinary_patterns_and_a_step_s_own(tmp_path: Path) -> None:
    step = InspectStep("text", options={"column": "label", "pattern_ticket": r"\bTKT-\d+\b"})
    texts = pa.array([
        "login=anna from 10.1.2.3 mail anna@example.org TKT-1 TKT-22",
        "card 4111 1111 1111 1111 password=hunter2 +49 170 1234567",
        "eth0 00:1a:2b:3c:4d:5e up, version 1.2.3",
        None,
    ])  # fmt: skip
    rows = looked(tmp_path, [None] * 4, step, label=texts)
    found = {
        name: rows.column(f"text_{name}").to_pylist()
        for name in ("ticket", "emails", "ipv4s", "cards", "secrets", "macs", "phones")
    }
    assert found == {
        "ticket": [2, 0, 0, None], "emails": [1, 0, 0, None], "ipv4s": [1, 0, 0, None], "cards": [0, 1, 0, None],
        "secrets": [0, 1, 0, None], "macs": [0, 0, 1, None], "phones": [0, 1, 0, None],
    }  # fmt: skip


def test_a_payload_that_is_text_is_counted_too(tmp_path: Path) -> None:
    rows = looked(tmp_path, [b"a@b.example \xff", None], InspectStep("text"))
    assert rows.column("text_emails").to_pylist() == [1, None]


@pytest.mark.parametrize("pattern", ["(", r"(?=x)", r"(a)\1", ""])
def test_a_pattern_that_no_linear_engine_takes_is_refused(pattern: str) -> None:
    with pytest.raises(ConfigError):
        check_step(InspectStep("text", options={"pattern_x": pattern}), None)


def test_a_user_s_function_is_found_by_hash_and_its_answers_are_typed(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def look(payload):\n    return {'size': len(payload), 'odd': len(payload) % 2 == 1}\n")
    columns = {"size": ColumnType.INT32, "odd": ColumnType.BOOL}
    bound = bind_code(policy(InspectStep("mine", file="mine.py", function="look", columns=columns)), tmp_path)
    store_code(lake_at(tmp_path), [bound], tmp_path)
    rows = looked(tmp_path, [b"abc", b"", None], bound.inspect[0])
    assert rows.column("size").to_pylist() == [3, 0, None]
    assert rows.column("odd").to_pylist() == [True, False, None]
    (tmp_path / "mine.py").write_text("def look(payload):\n    return {'size': 'many'}\n")
    again = bind_code(policy(bound.inspect[0]), tmp_path)
    assert again.version != bound.version
    store_code(lake_at(tmp_path), [again], tmp_path)
    rows = looked(tmp_path, [b"abc"], again.inspect[0])
    assert "not of type int32" in rows.column("inspect_errors")[0].as_py()


def test_an_inspector_that_is_suspended_stays_so_for_all_until_it_is_lifted(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import os\ndef look(payload):\n    return os._exit(1) if payload == b'die' else {'n': len(payload)}\n"
    )
    step = InspectStep("mine", file="mine.py", function="look", columns={"n": ColumnType.INT32})
    bound = bind_code(policy(step), tmp_path)
    store_code(lake_at(tmp_path), [bound], tmp_path)
    book = SuspensionBook(lake_at(tmp_path))
    book.suspend_inspector(bound.inspect[0], "killed by another process of this lake")
    rows = looked(tmp_path, [b"abc"], bound.inspect[0])
    assert "mine is suspended" in rows.column("inspect_errors")[0].as_py()
    assert [each.name for each in book.in_force([bound])] == ["mine"]
    assert book.lift([bound]) == ("inspector mine",)
    assert looked(tmp_path, [b"abc"], bound.inspect[0]).column("n").to_pylist() == [3]
    looked(tmp_path, [b"die", b"die"], bound.inspect[0])
    assert book.in_force([bound]) == ()
    looked(tmp_path, [b"die"], bound.inspect[0])
    assert "killed 3 times in a row" in book.in_force([bound])[0].reason


def test_code_that_was_changed_in_the_lake_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def look(payload):\n    return {'n': 1}\n")
    step = InspectStep("mine", file="mine.py", function="look", columns={"n": ColumnType.INT32})
    bound = bind_code(policy(step), tmp_path)
    store_code(lake_at(tmp_path), [bound], tmp_path)
    code_path(lake_at(tmp_path), bound.inspect[0].code).write_text("def look(payload):\n    return {'n': 2}\n")
    with pytest.raises(CorruptLakeError, match="do not match its name"):
        looked(tmp_path, [b"x"], bound.inspect[0])


def test_an_entry_point_that_is_not_installed_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no entry point of catchment\.inspectors"):
        check_step(InspectStep("nobody", columns={"n": ColumnType.INT32}), None)


def model(path: Path, classes: int = 2) -> Path:
    """Scores: the mean brightness, and one minus it."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Sub", ["one", "mean"], ["rest"]),
        helper.make_node("Unsqueeze", ["mean", "axis"], ["mean1"]),
        helper.make_node("Unsqueeze", ["rest", "axis"], ["rest1"]),
        helper.make_node("Concat", ["mean1", "rest1"], ["y"], axis=1),
    ]
    constants = [
        helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0]),
        helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, classes])],
        constants,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, str(path))
    return path


@pytest.mark.parametrize(
    ("kind", "columns"),
    [("classification", ["b_label", "b_score", "b_margin"]), ("embedding", ["b_embedding", "b_norm"])],
)
def test_a_model_gives_a_class_or_an_embedding(tmp_path: Path, draw: Draw, kind: str, columns: list[str]) -> None:
    model(tmp_path / "m.onnx")
    step = InspectStep("onnx", file="m.onnx", options={"name": "b", "kind": kind, "labels": "bright,dark"})
    check_step(step, tmp_path / "m.onnx")
    bound = bind_code(policy(step), tmp_path)
    store_code(lake_at(tmp_path), [bound], tmp_path)
    assert [column.name for column in step_columns(step)] == columns
    rows = looked(tmp_path, [draw(1, shift=150), draw(1, shift=-150), b"rubbish"], bound.inspect[0])
    if kind == "classification":
        assert rows.column("b_label").to_pylist() == ["bright", "dark", None]
        assert rows.column("b_score")[0].as_py() > 0.5
    else:
        vector = np.frombuffer(rows.column("b_embedding")[0].as_py(), "<f4")
        assert vector.sum() == pytest.approx(1.0, abs=1e-5)


def test_two_steps_that_give_one_column_and_a_column_of_another_type_are_refused() -> None:
    step = InspectStep("mine", file="m.py", function="f", columns={"image_width": ColumnType.INT32})
    with pytest.raises(ConfigError, match="two inspect steps give column image_width"):
        inspected(CAMERA, [policy(InspectStep("image"), step)])
    clash = InspectStep("mine", file="m.py", function="f", columns={"label": ColumnType.INT32})
    with pytest.raises(ConfigError, match="has label as string"):
        inspected(CAMERA, [policy(clash)])


def test_a_contract_without_steps_for_its_stream_stays_itself() -> None:
    assert inspected(builtin_contract("network_flow"), [policy(InspectStep("image"))]) is builtin_contract("network_flow")


def test_a_digest_follows_everything_that_can_change_an_answer() -> None:
    step = InspectStep("mine", file="m.py", function="f", code="0" * 64, columns={"n": ColumnType.INT32})
    same = msgspec.structs.replace(step, max_ms=5, max_memory_mib=128, file="other.py")
    others = [
        msgspec.structs.replace(step, code="1" * 64),
        msgspec.structs.replace(step, function="g"),
        msgspec.structs.replace(step, options={"a": 1}),
    ]
    assert step_digest(step) == step_digest(same)
    assert len({step_digest(each) for each in (step, *others)}) == 4
