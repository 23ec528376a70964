"""Run the whole loop on one machine: devices capture, the network drops, sets are built, a model goes back, the books balance.

The books of the devices and of the core are checked against each other and against the counts that the devices print.
"""

import json
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec

from catchment.runtime.clock import Clock, SystemClock
from pipelines.config import load_core_config
from pipelines.demo.learn import build_and_read, build_tissue_set, build_vehicle_sets, cut_slide, publish, torch_epoch, train_on
from pipelines.demo.processes import HOST, ProcessGroup, start_broker
from pipelines.demo.site import (
    MODEL,
    AgentPlan,
    DemoSite,
    Wiring,
    device_command,
    simulated_agents,
    write_site,
    write_slide_contract,
)
from pipelines.demo.stage import DemoStage, Proxy, Watch, tallies
from pipelines.demo.view import DemoCommands, DemoView, Snapshot
from pipelines.director import director_folder, first_director
from pipelines.rollout.keys import KeyFolder, KeyPlan, keys_folder, models_folder
from pipelines.rollout.repository import ModelRepository
from schemas.reported import StreamBooks

FIRST_ROWS_S = 60.0
SETTLE_S = 120.0
ROLLOUT_S = 90.0
CHIPS_S = 120.0
WANTED_PREDICTIONS = 10
SETTLED_LOOKS = 3
# A program's name -> the stream it feeds.
_FEEDS = {
    "line-camera": "camera_frame",
    "vehicle-camera": "camera_frame",
    "telemetry": "vehicle_telemetry",
    "switch": "network_flow",
    "microscope": "slide",
}


class AgentLedger(msgspec.Struct, frozen=True):
    """The output of `edge-agent books --json`."""

    device: str
    books: tuple[StreamBooks, ...]


class CoreStreamBooks(msgspec.Struct, frozen=True):
    """The core's books of one stream: one of the rows that `catchment books --json` tells."""

    stream: str
    received: int
    committed: int
    quarantined: int
    duplicate: int
    dropped: int = 0
    discarded: int = 0

    @property
    def is_balanced(self) -> bool:
        """Whether promise 3 holds."""
        return self.received == self.committed + self.quarantined + self.discarded + self.duplicate


def faults(
    agents: Sequence[AgentLedger], core: Sequence[CoreStreamBooks], made: Mapping[str, int], rows: Mapping[str, int]
) -> list[str]:
    """All that does not add up; empty when every captured sample is committed or accounted for.

    Args:
        agents: every device's books.
        core: the core's books.
        made: stream -> samples that the devices say they made, for streams where that is known.
        rows: stream -> rows in the lake.
    """
    found: list[str] = []
    captured: Counter[str] = Counter()
    settled: Counter[str] = Counter()
    for agent in agents:
        for book in agent.books:
            captured[book.stream] += book.captured
            settled[book.stream] += book.settled
            if not book.is_balanced:
                found.append(f"{agent.device} {book.stream}: captured {book.captured} is not settled + spooled + dropped: {book}")
            if book.spooled:
                found.append(f"{agent.device} {book.stream}: {book.spooled} samples still wait on the device")
    for stream, count in made.items():
        if captured[stream] != count:
            found.append(f"{stream}: the devices made {count} samples, their agents captured {captured[stream]}")
    known = {book.stream: book for book in core}
    for stream, count in settled.items():
        book_of_core = known.get(stream)
        if book_of_core is None:
            found.append(f"{stream}: {count} samples settled on devices, the core knows nothing of them")
            continue
        found += _core_faults(book_of_core, count, rows.get(stream, 0))
    return found


def _core_faults(book: CoreStreamBooks, settled: int, rows: int) -> list[str]:
    found = []
    if not book.is_balanced:
        found.append(f"{book.stream}: received is not committed + quarantined + discarded + duplicate: {book}")
    of_core = book.committed + book.quarantined + book.discarded
    if of_core != settled:
        found.append(f"{book.stream}: devices hold {settled} as settled, the core {of_core}")
    if book.committed != rows:
        found.append(f"{book.stream}: the core's books say {book.committed} rows, the lake has {rows}")
    return found


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """Options of the demo: the folder (replaced), the seconds of capture before training, and the seed."""

    folder: Path
    seconds: float = 30.0
    seed: int = 7


@dataclass(frozen=True, slots=True)
class SetRead:
    """A training set that was built, and how many samples an epoch of it gave."""

    name: str
    folder: str
    samples: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of the demo. `faults` is empty when the books balance and nothing is missing."""

    folder: str
    agents: tuple[AgentLedger, ...]
    core: tuple[CoreStreamBooks, ...]
    sets: tuple[SetRead, ...]
    test_accuracy: float | None
    predicted_rows: int
    faults: tuple[str, ...]
    skipped: tuple[str, ...] = ()


def run_demo(options: DemoOptions, view: DemoView, clock: Clock | None = None) -> Outcome:
    """Run the demo on simulated devices.

    Raises:
        PipelineError: something could not be started, or did not happen in time; the message says what.
    """
    clock = clock or SystemClock()
    site = DemoSite(options.folder)
    site.folder.mkdir(parents=True, exist_ok=True)
    agents = simulated_agents(site, options.seed)
    write_slide_contract(site)
    with ExitStack() as stack:
        stage = open_stage(stack, site, agents, view, clock)
        line = agents[0].sources[0].options["path"]
        command = [*device_command(site, "camera", "line-camera", options.seed), "--folder", str(line)]
        stage.start_device("line-camera", command)
        scans = agents[-1].sources[0].options["path"]
        command = [*device_command(site, "microscope", "microscope", options.seed), "--folder", str(scans)]
        stage.start_device("microscope", command)
        _capture(stage, options.seconds)
        sets, accuracy = _learn(stage)
        sets = (*sets, _slide_set(stage))
        predicted = _await_predictions(stage)
        wind_down(stage, agents)
        return account(stage, agents, sets, accuracy, predicted)


def open_stage(stack: ExitStack, site: DemoSite, agents: Sequence[AgentPlan], view: DemoView, clock: Clock) -> DemoStage:
    """Start broker, core and agents; `stack` ends them."""
    group = stack.enter_context(ProcessGroup(site.logs))
    _, port = start_broker(group, site.folder / "broker", clock)
    proxy = stack.enter_context(Proxy(port))
    streams = sorted({source.stream for agent in agents for source in agent.sources})
    write_site(site, agents, Wiring(port, proxy.port))
    root = _make_repository(site)
    model = {"name": MODEL, "root": str(root), "streams": ["camera_frame"], "probation_s": 2.0}
    director = first_director(director_folder(load_core_config(site.core_config)))
    write_site(site, agents, Wiring(port, proxy.port, model, director.public_keys))
    watch = stack.enter_context(Watch(HOST, port, site.lake, streams))
    stage = DemoStage(site, group, proxy, watch, view, clock, DemoCommands(site.folder, view))
    stage.start_core()
    stage.start_agents(agents)
    view.event(f"started: broker, core and {len(agents)} agents; everything lies in {site.folder}")
    return stage


def _make_repository(site: DemoSite) -> Path:
    config = load_core_config(site.core_config)
    root = ModelRepository(models_folder(config), KeyFolder(keys_folder(config)), SystemClock()).init(KeyPlan())
    trusted = site.folder / "agents" / "root.json"
    shutil.copy(root, trusted)  # as an operator would bring it to the device
    return trusted


def _capture(stage: DemoStage, seconds: float) -> None:
    stage.wait_for(
        lambda now: all(line.committed for line in now.streams), "first rows of every stream in the lake", FIRST_ROWS_S
    )
    stage.view.event("every stream has rows in the lake")
    stage.pass_time(seconds / 3)
    stage.drop_network(min(5.0, max(2.0, seconds / 4)))
    stage.pass_time(seconds / 3)


def _learn(stage: DemoStage) -> tuple[tuple[SetRead, ...], float]:
    wanted = (
        ("motion", "vehicle_telemetry", "speed_mps > 0"),
        ("surface", "camera_frame", "has('labelled')"),
    )
    stage.wait_for(lambda now: _rows(now, "camera_frame") >= 24, "pictures to learn from", FIRST_ROWS_S)
    sets = []
    for name, stream, where in wanted:
        folder, samples = build_and_read(stage.commands, stage.site, name, stream, where)
        sets.append(SetRead(name, str(folder), samples))
        stage.view.event(f"set {name}: {samples:,} samples; a shuffled epoch of it is read back")
        stage.snapshot()
    sets += _vehicle_sets(stage)
    model = train_on(Path(sets[1].folder))
    stage.view.event(
        f"trained on {model.samples} pictures ({', '.join(model.labels)}):"
        f" {model.test_accuracy:.0%} right on the quarter that it did not see"
    )
    publish(stage.commands, stage.site, model)
    return tuple(sets), model.test_accuracy


def _vehicle_sets(stage: DemoStage) -> list[SetRead]:
    """Frames joined with telemetry, windows as Zarr arrays, and an epoch of each; with PyTorch where it is installed."""
    built = build_vehicle_sets(stage.commands, stage.site)
    stage.view.event(
        f"set {built.scenes.parent.name}: {built.scene_samples:,} frames with the telemetry of their moment, split by blocks of"
        f" time and by class; its card: {built.scenes / 'card.html'}"
    )
    stage.view.event(
        f"set {built.windows.parent.name}: {built.window_samples:,} windows of telemetry and frames as Zarr arrays:"
        f" {built.windows / 'train.zarr'}"
    )
    loaded = torch_epoch(built.windows)
    if loaded is None:
        stage.view.event("PyTorch is not installed: no epoch of tensors (python -m pip install torch)")
    else:
        stage.view.event(f"PyTorch loaded an epoch of {loaded:,} windows as tensors")
    stage.snapshot()
    return [
        SetRead(built.scenes.parent.name, str(built.scenes), built.scene_samples),
        SetRead(built.windows.parent.name, str(built.windows), built.window_samples),
    ]


def _slide_set(stage: DemoStage) -> SetRead:
    """The microscope's slide: wait for its chips, show the times, build a set of those with tissue, and a page of all."""
    stage.wait_for(lambda _: cut_slide(stage.site) is not None, "chips of the microscope's slide", CHIPS_S)
    slide = cut_slide(stage.site)
    assert slide is not None
    stage.view.event(
        f"the microscope's slide: {slide.megapixels:,.0f} megapixels, {slide.bytes / 1e6:.0f} MB in {slide.parts} parts;"
        f" its row is in the lake after {slide.row_s:.1f} s, its {slide.chips:,} chips after {slide.chips_s:.1f} s;"
        f" {slide.tagged:,} have tissue",
        "bold green",
    )
    folder, samples = build_tissue_set(stage.commands, stage.site)
    page = stage.site.folder / "slide.html"
    stage.commands.run("catchment", "chips", "sheet", slide.name, str(page), "-c", str(stage.site.core_config))
    stage.view.event(f"set {folder.parent.name}: {samples:,} chips with tissue; the slide on a page: {page}")
    stage.snapshot()
    return SetRead(folder.parent.name, str(folder), samples)


def _rows(now: Snapshot, stream: str) -> int:
    return sum(line.committed for line in now.streams if line.stream == stream)


def _await_predictions(stage: DemoStage) -> int:
    def predicted(now: Snapshot) -> int:
        return sum(line.predicted for line in now.streams)

    stage.wait_for(lambda _: bool(stage.watch.models()), "the model running on a device", ROLLOUT_S)
    for device, model in sorted(stage.watch.models().items()):
        stage.view.event(f"{device} runs {model.name} version {model.version}", "bold green")
    found = stage.wait_for(lambda now: predicted(now) >= WANTED_PREDICTIONS, "frames with a prediction in the lake", ROLLOUT_S)
    stage.view.event(f"{predicted(found)} rows in the lake already carry the new model's prediction", "bold green")
    return predicted(found)


def wind_down(stage: DemoStage, agents: Sequence[AgentPlan]) -> None:
    """End the devices, and wait until their agents have nothing left."""
    stage.site.end_mark.touch()
    quiet: Counter[tuple[int, int]] = Counter()

    def is_settled(now: Snapshot) -> bool:
        known = {line.device for line in now.devices} >= {agent.device for agent in agents}
        quiet[now.captured, now.spooled] += 1
        # The same figures at several looks in a row: the last samples have been captured, too.
        return known and now.spooled == 0 and quiet[now.captured, now.spooled] >= SETTLED_LOOKS * 3

    stage.wait_for(is_settled, "every sample settled", SETTLE_S)
    stage.view.event("the devices have ended, and every sample is settled")


def account(
    stage: DemoStage, agents: Sequence[AgentPlan], sets: tuple[SetRead, ...], accuracy: float | None, predicted: int,
    skipped: tuple[str, ...] = (),
) -> Outcome:  # fmt: skip
    """Ask both sides for their books, and compare them with each other, the lake and what the devices made."""
    ledgers = tuple(
        msgspec.json.decode(
            stage.commands.run("edge-agent", "books", "-c", str(stage.site.agent_config(agent.device)), "--json"),
            type=AgentLedger,
        )
        for agent in agents
    )
    core = msgspec.json.decode(
        stage.commands.run("catchment", "books", "-c", str(stage.site.core_config), "--json"), type=tuple[CoreStreamBooks, ...]
    )
    rows = {line.stream: line.committed for line in stage.snapshot().streams}
    found = faults(ledgers, core, _made(stage.site), rows)
    outcome = Outcome(str(stage.site.folder), ledgers, core, sets, accuracy, predicted, tuple(found), skipped)
    (stage.site.folder / "outcome.json").write_bytes(msgspec.json.encode(outcome))
    return outcome


def _made(site: DemoSite) -> Mapping[str, int]:
    made: Counter[str] = Counter()
    for program, count in tallies(site.tallies).items():
        made[_FEEDS[program]] += count
    return made


def folder_name(clock: Clock) -> str:
    """A fresh folder's name: catchment-demo-<date>-<time>."""
    return time.strftime("catchment-demo-%Y%m%d-%H%M%S", time.localtime(clock.now_ms() / 1000))


def outcome_json(outcome: Outcome) -> str:
    """The outcome as one JSON document."""
    return json.dumps(msgspec.to_builtins(outcome))
