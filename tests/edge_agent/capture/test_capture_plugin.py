"""A source of another package: installed as its user would, run by the agent's own process, resumed, and contained."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from catchment.runtime.clock import SystemClock
from edge_agent import sources
from edge_agent.capture.source_supervisor import previous_source
from edge_agent.sources import registry
from edge_agent.sources.api import Source
from edge_agent.spool.spool import Spool


@pytest.fixture(scope="module")
def installed(repository_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example of the page, in a folder of its own that stands for site-packages."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(repository_root / "docs/examples/source-plugin", folder / "package")
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"),
            *(
                "--disable-pip-version-check",
                "--root-user-action=ignore",
                "--target",
                str(folder / "site"),
                str(folder / "package"),
            ),
        ],
        check=True,
        capture_output=True,
        cwd=folder,
    )
    return folder / "site"


def agent(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(installed), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-c", "from edge_agent.cli import main; main()", *arguments],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def config(folder: Path, **options: object) -> str:
    path = folder / "agent.toml"
    option_lines = "\n".join(f"{name} = {json.dumps(value)}" for name, value in options.items())
    path.write_text(
        'device = "d-1"\nstate_dir = "state"\n[[source]]\nkind = "countdown"\nstream = "log_line"\nmax_samples = 7\n'
        f"[source.options]\n{option_lines}\n"
    )
    return str(path)


def test_the_example_is_checked_by_the_agent_like_any_other(installed: Path, tmp_path: Path) -> None:
    assert agent(installed, "check", "-c", config(tmp_path, start=20)).returncode == 0
    wrong = agent(installed, "check", "-c", config(tmp_path, start="soon"))
    assert wrong.returncode != 0
    assert "give start, a whole number" in wrong.stderr + wrong.stdout


def test_without_its_package_the_kind_is_unknown_and_the_known_ones_are_named(tmp_path: Path) -> None:
    done = agent(tmp_path, "check", "-c", config(tmp_path, start=20))
    assert done.returncode != 0
    text = " ".join((done.stderr + done.stdout).split())
    assert "countdown" in text
    assert "syslog" in text


RUN = """
import sys, threading
from pathlib import Path
from edge_agent.capture.encode import BatchLimits, Encoder
from edge_agent.capture.pump import SourcePump
from edge_agent.capture.transforms import build_transforms
from edge_agent.sources.registry import build_source
from catchment.runtime.clock import SystemClock
from edge_agent.clock_quality import ClockWatch
from edge_agent.config import load_agent_config, load_contract
from edge_agent.spool.spool import Spool
from edge_agent.capture.source_supervisor import previous_source
(config,) = load_agent_config(Path(sys.argv[1])).source
contract, clock = load_contract(config), SystemClock()
spool = Spool(Path(sys.argv[2]), max_bytes=1 << 27, linger_ms=5, clock=clock)
transforms = build_transforms(contract, None, b"", ClockWatch(clock), None)
encoder = Encoder(contract, BatchLimits(1 << 18, 1 << 20), spool.put_object)
build = lambda position: build_source(config.kind, config.options, contract, clock, position)
choose = lambda known: previous_source(config.name, known, {config.name})
SourcePump(config, build, encoder, spool, transforms, clock, choose=choose).run(threading.Event())
spool.close()
"""


def run(installed: Path, config_path: str, spool: Path) -> None:
    paths = os.pathsep.join([str(installed), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", RUN, config_path, str(spool)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr.decode()


def stored(folder: Path) -> list[str]:
    spool = Spool(folder, max_bytes=1 << 27, linger_ms=5, clock=SystemClock())
    found: list[str] = []
    while envelopes := spool.next_unsent(1 << 30):
        for envelope in envelopes:
            found += pa.ipc.open_stream(io.BytesIO(envelope.body)).read_all()["message"].to_pylist()
    spool.close()
    return found


def test_the_example_fills_the_spool_once_over_two_starts(installed: Path, tmp_path: Path) -> None:
    path = config(tmp_path, start=20)
    for _ in range(2):
        run(installed, path, tmp_path / "spool")
    assert stored(tmp_path / "spool") == [str(n) for n in range(20, 0, -1)]


@pytest.mark.slow
def test_a_plug_ins_position_survives_a_change_of_an_option_that_does_not_say_what_is_read(
    installed: Path, tmp_path: Path
) -> None:
    run(installed, config(tmp_path, start=20), tmp_path / "spool")
    run(installed, config(tmp_path, start=20, text="T-"), tmp_path / "spool")
    assert stored(tmp_path / "spool") == [str(n) for n in range(20, 0, -1)]
    run(installed, config(tmp_path, start=3, text="T-"), tmp_path / "spool")
    assert stored(tmp_path / "spool") == [*(str(n) for n in range(20, 0, -1)), "T-3", "T-2", "T-1"]


def test_a_kind_is_found_by_its_folder_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder next to the built-in ones, as if somebody had added it to the agent."""
    folder = tmp_path / "count_up"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "source.py").write_text('IDENTITY = ("start",)\n\n\ndef build(*_):\n    raise ValueError\n')
    monkeypatch.setattr(sources, "__path__", [*sources.__path__, str(tmp_path)])
    registry.built_in_kinds.cache_clear()
    try:
        assert registry.load_kind("count-up").identity == ("start",)
        assert "count_up" not in registry.built_in_kinds()
        one, two, three = (f'count-up:log_line:{{"start":{start},"rate":{rate}}}' for start, rate in ((1, 1), (1, 2), (2, 1)))
        assert (previous_source(two, [one], ()), previous_source(three, [one], ())) == (one, None)
    finally:
        registry.built_in_kinds.cache_clear()


@pytest.mark.parametrize("identity", ["path", (1, 2)])
def test_an_identity_that_is_no_tuple_of_names_is_refused(identity: str | tuple[int, int]) -> None:
    class Build:
        IDENTITY = identity

        def __call__(self, *_: object) -> Source:
            raise ValueError

    with pytest.raises(TypeError, match="not a tuple of option names"):
        registry._declared(Build())
