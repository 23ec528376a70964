"""How far a rollout is, when it stops by itself, which one decides, and its documents."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import CorruptLakeError, NotFoundError, RefusedError
from pipelines.rollout.cohorts import Cohort
from pipelines.rollout.rollouts import Rollout, RolloutProgress, RolloutStore, order_for, progress, runs_halted, wanted_by
from schemas.reported import ModelReport
from schemas.rollout import Desired

REPORTS = st.builds(
    ModelReport,
    st.sampled_from(["bright", "other"]),
    st.sampled_from([0, 1, 2]),
    st.sampled_from(["active", "none", "refused", "rolled_back", "blocked"]),
    refused=st.sampled_from([(), (1,), (2,), (1, 2)]),
)


def rollout(name: str = "r", **changes: Any) -> Rollout:
    return msgspec.structs.replace(Rollout(name, "bright", 2, "bright/2.onnx", "all", 10), **changes)


def state_of(found: RolloutProgress, device: str) -> str:
    return next(name for name in ("active", "failed", "waiting", "on_probation", "blocked") if device in getattr(found, name))


@pytest.mark.parametrize(
    ("report", "state"),
    [
        (ModelReport("bright", 2, "active"), "active"),
        (ModelReport("bright", 2, "active", refused=(2,)), "active"),
        (ModelReport("bright", 2, "active", on_probation=True), "on_probation"),
        (ModelReport("bright", 2, "refused"), "blocked"),
        (ModelReport("bright", 1, "refused"), "blocked"),
        (ModelReport("bright", 1, "refused", refused=(2,)), "failed"),
        (ModelReport("bright", 1, "blocked", "disk: full"), "blocked"),
        (ModelReport("bright", 2, "rolled_back"), "waiting"),
        (ModelReport("bright", 1, "rolled_back", refused=(2,)), "failed"),
        (ModelReport("bright", 1, "active", refused=(2,)), "failed"),
        (ModelReport("bright", 1, "active", refused=(3,)), "waiting"),
        (ModelReport("other", 2, "active"), "waiting"),
        (ModelReport("other", 2, "refused", refused=(2,)), "waiting"),
        (ModelReport("bright", 1, "blocked", "network", refused=(2,)), "failed"),
    ],
)
def test_a_devices_last_report_says_how_it_went(report: ModelReport, state: str) -> None:
    assert state_of(progress(rollout(), {"a": [report]}), "a") == state


@given(st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), st.lists(REPORTS, max_size=3)))
def test_each_device_of_the_cohort_is_counted_once_by_its_report_of_this_model(reports: dict[str, list[ModelReport]]) -> None:
    found = progress(rollout(cohort="a,b,c"), reports)
    assert sorted((*found.active, *found.failed, *found.waiting, *found.on_probation, *found.blocked)) == sorted(
        {"a", "b", "c"} & reports.keys()
    )
    assert found.answers == len(found.active) + len(found.failed)
    for device in {"a", "b", "c"} & reports.keys():
        alone = progress(rollout(cohort="a,b,c"), {device: [one for one in reports[device] if one.name == "bright"][:1]})
        assert state_of(found, device) == state_of(alone, device)


@pytest.mark.parametrize(
    ("active", "failed", "halts"),
    [(0, 2, False), (0, 3, True), (2, 1, True), (4, 1, False), (3, 1, True), (8, 2, False), (7, 2, True), (3, 0, False)],
)
def test_a_rollout_halts_above_its_ratio_of_enough_answers(active: int, failed: int, halts: bool) -> None:
    found = RolloutProgress(("d",) * active, ("d",) * failed, ("d",) * 9)
    assert found.answers == active + failed
    assert found.should_halt(rollout()) is halts


def test_the_least_answers_and_the_ratio_are_the_rollouts_own() -> None:
    assert RolloutProgress((), ("a",), ()).should_halt(rollout(min_answers=1))
    assert not RolloutProgress((), ("a",), ()).should_halt(rollout(min_answers=2))
    assert not RolloutProgress((), ("a",), ()).should_halt(rollout(min_answers=1, halt_ratio=1.0))
    assert not RolloutProgress(("b",), ("a",), ()).should_halt(rollout(min_answers=1, halt_ratio=0.5))


def test_a_rollout_that_says_nothing_of_it_halts_above_a_fifth_of_three_answers() -> None:
    plain = rollout()
    assert (plain.state, plain.halt_ratio, plain.min_answers, plain.reason) == ("running", 0.2, 3, "")


@pytest.mark.parametrize(
    "changes", [{"halt_ratio": 0.0}, {"halt_ratio": -0.1}, {"halt_ratio": 1.01}, {"halt_ratio": 2.0}, {"min_answers": 0}]
)
def test_a_limit_that_makes_no_sense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RefusedError, match=r"^rollout r: halt_ratio must be within 0..1 and min_answers at least 1$"):
        Rollout("r", "bright", 2, "bright/2.onnx", "all", 10, **changes)


@pytest.mark.parametrize("changes", [{"halt_ratio": 1.0}, {"halt_ratio": 0.001}, {"min_answers": 1}])
def test_a_limit_at_its_bound_is_taken(changes: dict[str, Any]) -> None:
    assert Rollout("r", "bright", 2, "bright/2.onnx", "all", 10, **changes).name == "r"


@pytest.mark.parametrize("name", ["", "R", "1r", "a b", "../r", "r" * 64])
def test_a_name_that_is_no_name_is_refused(name: str) -> None:
    hint = r" must be of a-z, 0-9, '_' and '-', starting with a letter$"
    with pytest.raises(RefusedError, match=f"^rollout {name!r}".replace(".", r"\.") + hint):
        Rollout(name, "bright", 2, "bright/2.onnx", "all", 10)


def test_a_name_too_long_to_print_is_cut_in_the_message() -> None:
    with pytest.raises(RefusedError, match=f"^rollout '{'r' * 80}' must"):
        Rollout("r" * 81, "bright", 2, "bright/2.onnx", "all", 10)


def test_a_rollout_says_whom_it_covers_and_what_they_should_run() -> None:
    one = Rollout("r", "bright", 2, "bright/2.onnx", "5%,a", 10)
    assert one.devices == Cohort(500, ("a",))
    assert one.desired == Desired("r", "bright", 2, "bright/2.onnx", 10)


def test_of_the_running_rollouts_that_cover_a_device_the_one_issued_last_decides() -> None:
    old, new, halted = rollout("old"), rollout("new", issued_ms=20, cohort="a"), rollout("halted", issued_ms=30, state="halted")
    assert wanted_by("a", [new, old, halted]) == new
    assert wanted_by("a", [old, new]) == new
    assert wanted_by("b", [new, old, halted]) == old
    assert wanted_by("b", [new, halted]) is None
    assert wanted_by("a", []) is None


def test_a_share_is_drawn_anew_for_each_rollout() -> None:
    covered = {
        name: [device for device in "abcdefgh" if wanted_by(device, [rollout(name, cohort="50%")])] for name in ("r1", "r2")
    }
    assert covered == {name: Cohort(5_000).among(name, "abcdefgh") for name in ("r1", "r2")}
    assert covered["r1"] != covered["r2"]
    silent: dict[str, list[ModelReport]] = {device: [] for device in "abcdefgh"}
    assert {name: list(progress(rollout(name, cohort="50%"), silent).waiting) for name in ("r1", "r2")} == covered


def test_documents_come_back_oldest_first_and_by_name(tmp_path: Path) -> None:
    store = RolloutStore(tmp_path / "models" / "rollouts")
    assert store.all() == []
    late, early, beside = rollout("a", issued_ms=20), rollout("b"), rollout("c")
    for one in (late, beside, early):
        store.save(one)
    store.save(msgspec.structs.replace(late, state="halted", reason="too many failed"))
    assert store.all() == [early, beside, msgspec.structs.replace(late, state="halted", reason="too many failed")]
    assert store.get("c") == beside
    (tmp_path / "models" / "rollouts" / "note.txt").write_text("not a rollout")
    assert len(store.all()) == 3
    RolloutStore(tmp_path / "models" / "rollouts").save(early)


def test_a_document_is_for_people_and_other_programs_to_read(tmp_path: Path) -> None:
    RolloutStore(tmp_path).save(rollout())
    path = tmp_path / "r.json"
    assert path.stat().st_mode & 0o777 == 0o644
    assert path.read_text().startswith('{\n  "name": "r",\n  "model": "bright",\n')


def test_a_rollout_that_is_not_there_is_named_beside_those_there_are(tmp_path: Path) -> None:
    store = RolloutStore(tmp_path)
    with pytest.raises(NotFoundError, match=r"^no rollout 'x'; there are: none$"):
        store.get("x")
    store.save(rollout("b", issued_ms=20))
    store.save(rollout("a"))
    with pytest.raises(NotFoundError, match=r"^no rollout 'x'; there are: a, b$"):
        store.get("x")
    with pytest.raises(NotFoundError, match=f"^no rollout '{'x' * 80}';"):
        store.get("x" * 81)


@pytest.mark.parametrize("body", ["", "{}", "[1]", '{"name": "r", "model": 1}'])
def test_a_damaged_document_is_named_with_what_to_do(tmp_path: Path, body: str) -> None:
    (tmp_path / "r.json").write_text(body)
    with pytest.raises(CorruptLakeError, match=r"/r\.json is damaged: .+; restore it or start the rollout again$") as caught:
        RolloutStore(tmp_path).all()
    assert isinstance(caught.value.__cause__, msgspec.MsgspecError)


def test_a_document_that_breaks_a_rollouts_rules_is_damaged_too(tmp_path: Path) -> None:
    body = msgspec.json.encode({**msgspec.to_builtins(rollout()), "halt_ratio": 7.0})
    (tmp_path / "r.json").write_bytes(body)
    with pytest.raises((CorruptLakeError, RefusedError), match="halt_ratio"):
        RolloutStore(tmp_path).all()


RAN = [ModelReport("other", 2, "active"), ModelReport("bright", 2, "active")]


def test_a_device_that_runs_the_version_of_the_newest_rollout_well_is_ordered_nothing_once_that_is_halted() -> None:
    old, new = rollout("old", version=1, issued_ms=9), rollout("new", state="halted", issued_ms=20)
    assert runs_halted("a", [new, old], RAN)
    assert order_for("a", iter([new, old]), RAN) is None
    assert order_for("a", [msgspec.structs.replace(new, state="running"), old], RAN) == rollout("new", issued_ms=20)


@pytest.mark.parametrize(
    "models",
    [
        [],
        [ModelReport("other", 2, "active")],
        [ModelReport("bright", 1, "active")],
        [ModelReport("bright", 2, "refused")],
    ],
)
def test_a_device_that_does_not_run_the_halted_version_well_goes_on_with_the_rollout_before(models: list[ModelReport]) -> None:
    old, new = rollout("old", version=1, issued_ms=9), rollout("new", state="halted", issued_ms=20)
    assert not runs_halted("a", [old, new], models)
    assert order_for("a", [old, new], models) == old


def test_a_halted_rollout_that_is_older_or_of_other_devices_halts_nothing() -> None:
    halted, running = rollout("halted", state="halted", issued_ms=9), rollout("running", issued_ms=20)
    assert order_for("a", [halted, running], RAN) == running
    others = rollout("others", state="halted", cohort="b", issued_ms=30)
    assert order_for("a", [running, others], RAN) == running
    assert order_for("b", [running, others], RAN) is None
    assert not runs_halted("a", [others], RAN)
    assert not runs_halted("a", [], RAN)
    assert order_for("a", [], []) is None


def test_a_halt_is_written_once_with_its_first_reason(tmp_path: Path) -> None:
    store = RolloutStore(tmp_path / "rollouts")
    store.save(rollout("r"))
    halted = store.halt("r", "too many failed")
    assert (halted.state, halted.reason) == ("halted", "too many failed")
    assert store.get("r") == halted
    assert store.halt("r", "again") == halted
    assert store.get("r") == halted
    with pytest.raises(NotFoundError):
        store.halt("other", "none")
