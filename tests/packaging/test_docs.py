"""The pages say what is true of the code: links lead somewhere, modules exist, every configuration key is told."""

import re
from pathlib import Path

import msgspec
import pytest

from edge_agent.config import AgentConfig, PolicyConfig, SourceConfig, SpoolConfig, UplinkConfig
from edge_agent.config import BrokerConfig as AgentBroker
from edge_agent.config import DirectorConfig as AgentDirector
from edge_agent.models.config import ModelConfig
from edge_agent.sections import ReportConfig
from edge_agent.sources.camera.source import CameraOptions
from edge_agent.sources.can.source import CanOptions
from edge_agent.sources.directory.source import DirectoryOptions
from edge_agent.sources.exec.source import ExecOptions
from edge_agent.sources.nmea.source import NmeaOptions
from edge_agent.sources.replay.source import ReplayOptions
from edge_agent.sources.syslog.source import SyslogOptions
from edge_agent.sources.tail.source import TailOptions
from edge_agent.sources.zeek.source import ZeekOptions
from pipelines.config import (
    AlarmConfig,
    BridgeConfig,
    ChipsConfig,
    CoreBrokerConfig,
    CoreConfig,
    CoreDirectorConfig,
    MaintainConfig,
    RunConfig,
    ShareConfig,
    WatchConfig,
)
from schemas import contract

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCE_OPTIONS = (
    CameraOptions,
    CanOptions,
    DirectoryOptions,
    ExecOptions,
    NmeaOptions,
    ReplayOptions,
    SyslogOptions,
    TailOptions,
    ZeekOptions,
)
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def _keys(*forms: type[msgspec.Struct]) -> list[tuple[str, str]]:
    return [(form.__name__, field.encode_name) for form in forms for field in msgspec.structs.fields(form)]


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_somewhere(name: str) -> None:
    page = ROOT / name
    broken = []
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        if not found.exists() or (anchor and anchor not in _anchors(found)):
            broken.append(target)
    assert broken == []


def _anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", NAMES)
def test_every_file_named_in_a_page_exists(name: str) -> None:
    text = (ROOT / name).read_text()
    named = set(re.findall(r"`((?:catchment|edge_agent|pipelines|schemas|tests|deploy|docs|scripts|bench)/[\w./-]*\w/?)`", text))
    assert sorted(path for path in named if not (ROOT / path).exists()) == []


@pytest.mark.parametrize("name", NAMES)
def test_every_make_target_named_in_a_page_exists(name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    code = re.findall(r"(?:`|^)make ([a-z-]+)", (ROOT / name).read_text(), re.MULTILINE)
    assert sorted(set(code) - targets) == []


@pytest.mark.parametrize("page", ["contracts.md", "data-engineer/running.md"])
def test_the_pages_name_the_contracts_that_ship_and_count_them_right(page: str) -> None:
    text = " ".join((ROOT / "docs" / page).read_text().split())
    [(count, names)] = re.findall(r"(\w+) ship with Catchment[^:]*: ((?:`\w+`(?:, | and )?)+)\.", text)
    assert sorted(re.findall(r"`(\w+)`", names)) == sorted(contract.NAMES)
    assert count == ("Six", "Seven", "Eight", "Nine", "Ten", "Eleven", "Twelve")[len(contract.NAMES) - 6]


@pytest.mark.parametrize(
    ("page", "form", "key"),
    [
        *[
            ("operator/reference.md", *pair)
            for pair in _keys(
                AgentConfig, AgentBroker, AgentDirector, PolicyConfig, SpoolConfig, UplinkConfig, SourceConfig, ModelConfig
            )
            if pair[1] not in ("broker", "spool", "uplink", "source", "model")
        ],
        *[("sources.md", *pair) for pair in _keys(*SOURCE_OPTIONS, ReportConfig)],
        *[
            ("data-engineer/reference.md", *pair)
            for pair in _keys(
                CoreConfig,
                CoreBrokerConfig,
                BridgeConfig,
                ShareConfig,
                RunConfig,
                ChipsConfig,
                WatchConfig,
                AlarmConfig,
                MaintainConfig,
                CoreDirectorConfig,
            )
            if pair[1] not in ("broker", "bridge", "shares", "run", "chips", "watch", "alarms", "maintain")
        ],
    ],
)
def test_every_configuration_key_is_documented(page: str, form: str, key: str) -> None:
    assert f"`{key}`" in (ROOT / "docs" / page).read_text(), f"{form}.{key} is not in docs/{page}"


@pytest.mark.parametrize(
    ("page", "form"),
    [
        ("operator/reference.md", SpoolConfig),
        ("operator/reference.md", UplinkConfig),
        ("data-engineer/reference.md", BridgeConfig),
        ("data-engineer/reference.md", ShareConfig),
        ("data-engineer/reference.md", RunConfig),
        ("data-engineer/reference.md", ChipsConfig),
        ("data-engineer/reference.md", WatchConfig),
        ("data-engineer/reference.md", MaintainConfig),
        ("data-engineer/reference.md", CoreDirectorConfig),
    ],
)
def test_every_default_is_documented_as_it_is(page: str, form: type[msgspec.Struct]) -> None:
    text = (ROOT / "docs" / page).read_text()
    wrong = []
    for field in msgspec.structs.fields(form):
        shown = f'"{field.default}"' if isinstance(field.default, str) else str(field.default)
        if f"| `{field.encode_name}` | `{shown}` |" not in text:
            wrong.append((field.encode_name, shown))
    assert wrong == []
