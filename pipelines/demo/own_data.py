"""The demo on a user's own folder: pictures become camera_frame, tables whose columns fit a built-in stream become that stream.

A picture's folder is its label, as image classification data sets are laid out: `good/0001.jpg`, `defect/0002.jpg`.
What fits nowhere is skipped, and told with the reason.
"""

import csv
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from catchment.runtime.clock import Clock, SystemClock
from pipelines.demo.learn import build_and_read, train_on
from pipelines.demo.run import FIRST_ROWS_S, DemoOptions, Outcome, SetRead, account, open_stage, wind_down
from pipelines.demo.site import AgentPlan, DemoSite, SourceTable
from pipelines.demo.stage import DemoStage
from pipelines.demo.view import DemoView
from pipelines.errors import RefusedError
from schemas.contract import NAMES, builtin_contract

DEVICE = "own-data"
PICTURES = ("*.jpg", "*.jpeg", "*.png")
TABLES = (".csv", ".jsonl", ".ndjson")


def plan_own_data(data: Path) -> tuple[AgentPlan, tuple[str, ...]]:
    """List what can be captured from this folder, and what is skipped and why.

    Raises:
        RefusedError: nothing in it can be used.
    """
    if not data.is_dir():
        raise RefusedError(f"{data} is no folder; give --data a folder of pictures, CSV or JSON lines")
    sources = list(_pictures(data))
    skipped: list[str] = []
    for path in sorted(path for path in data.rglob("*") if path.suffix.lower() in TABLES):
        stream, reason = stream_for(path)
        if stream:
            sources.append(SourceTable("replay", stream, {"path": str(path)}, compress=True))
        else:
            skipped.append(f"{path.name}: {reason}")
    if not sources:
        found = "; ".join(skipped) or "it has no .jpg, .png, .csv or .jsonl files"
        raise RefusedError(f"nothing in {data} can be used: {found}")
    return AgentPlan(DEVICE, tuple(sources)), tuple(skipped)


def _pictures(data: Path) -> Iterator[SourceTable]:
    for folder in sorted({path.parent for form in PICTURES for path in data.rglob(form)}):
        columns = {} if folder == data else {"label": folder.name}
        options = {"path": str(folder), "pattern": list(PICTURES), "done": "keep", "settle_ms": 100, "columns": columns}
        yield SourceTable("directory", "camera_frame", options)


def stream_for(path: Path) -> tuple[str, str]:
    """The built-in stream whose required columns this table has, or "" and the reason why there is none."""
    try:
        names = _column_names(path)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        return "", f"its first line cannot be read ({error})"
    contracts = [builtin_contract(name) for name in NAMES]
    for contract in contracts:
        required = {column.name for column in contract.columns if column.required}
        if contract.payload is None and required <= names:
            return contract.name, ""
    wanted = "; ".join(
        f"{contract.name} needs {', '.join(column.name for column in contract.columns if column.required)}"
        for contract in contracts
        if contract.payload is None
    )
    return "", f"its columns fit no built-in stream ({wanted}); rename them, or write a contract of your own"


def _column_names(path: Path) -> set[str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix.lower() == ".csv":
            return set(next(csv.reader(file), []))
        first = json.loads(file.readline(1024 * 1024))
        return set(first) if isinstance(first, dict) else set()


def run_on_own_data(data: Path, options: DemoOptions, view: DemoView, clock: Clock | None = None) -> Outcome:
    """Run the demo on a user's folder, which is only read.

    Raises:
        PipelineError: nothing can be used, or something could not be started, or did not happen in time.
    """
    clock = clock or SystemClock()
    plan, skipped = plan_own_data(data)
    site = DemoSite(options.folder)
    site.folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stage = open_stage(stack, site, (plan,), view, clock)
        stage.wait_for(lambda now: any(line.committed for line in now.streams), "first rows in the lake", FIRST_ROWS_S)
        stage.drop_network(2.0)
        wind_down(stage, (plan,))
        sets, accuracy, more = _learn(stage)
        return account(stage, (plan,), sets, accuracy, 0, (*skipped, *more))


def _learn(stage: DemoStage) -> tuple[tuple[SetRead, ...], float | None, list[str]]:
    sets, skipped, accuracy = [], ["the rollout: your folder has no further frames that a device could look at"], None
    for line in stage.snapshot().streams:
        if line.committed:
            folder, samples = build_and_read(stage.commands, stage.site, line.stream.replace("_", "-"), line.stream, "")
            sets.append(SetRead(line.stream.replace("_", "-"), str(folder), samples))
            stage.view.event(f"set {sets[-1].name}: {samples:,} samples; a shuffled epoch of it is read back")
    pictures = [one for one in sets if one.name == "camera-frame"]
    if pictures:
        try:
            model = train_on(Path(pictures[0].folder))
            accuracy = model.test_accuracy
            stage.view.event(f"trained on {model.samples} pictures: {accuracy:.0%} right on the quarter that it did not see")
        except RefusedError as error:
            skipped.append(f"the training: {error}")
    return tuple(sets), accuracy, skipped
