"""The director's keys are made by a command, changed without a gap, and its counters never give a number twice."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from pipelines.commands.director import director_app
from pipelines.config import CoreConfig, load_core_config
from pipelines.director import (
    DesiredOrders,
    add_director_key,
    counters_folder,
    director_folder,
    load_director,
    next_counter,
    require_director,
)
from pipelines.errors import ConfigError, CorruptLakeError, NotFoundError, RefusedError
from schemas.rollout import DesiredModels, decode_desired
from schemas.signed_document import DocumentKind, decode_body, decode_document, decode_message
from tests.fakes.director import DAY_MS, NOW_MS, HandClock, OrderTaker, wanted


@pytest.fixture
def core(tmp_path: Path) -> Path:
    path = tmp_path / "core.toml"
    path.write_text('lake = "lake"\nmodels = "model-keys"\n[director]\nlifetime_h = 240\n')
    return path


def run(core: Path, *arguments: str) -> str:
    result = CliRunner().invoke(director_app, [*arguments, "-c", str(core)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def orders(core: Path, now_ms: int = NOW_MS) -> DesiredOrders:
    return DesiredOrders.open(load_core_config(core), HandClock(now_ms))


def test_keys_are_made_added_and_retired_and_devices_follow_throughout(core: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="director init"):
        run(core, "show")
    assert "[director]\npublic_keys" in run(core, "init")
    (old,) = run(core, "show", "--bare").split()
    with pytest.raises(RefusedError, match="director add"):
        run(core, "init")
    folder = director_folder(load_core_config(core))
    assert folder == tmp_path / "model-keys" / "director"
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    device = OrderTaker(tmp_path / "state", old)
    assert device.take(orders(core).message("line-3", wanted(1))) == (1,)
    run(core, "add")
    new = run(core, "show", "--bare").split()[1]
    assert device.take(orders(core).message("line-3", wanted(2))) == (2,)
    device = OrderTaker(tmp_path / "state", old, new)  # the device is told of the new key
    with pytest.raises(NotFoundError, match="0 keys begin"):
        run(core, "retire", "zz")
    run(core, "retire", old[:12])
    assert run(core, "show", "--bare").split() == [new]
    device = OrderTaker(tmp_path / "state", new)
    assert device.take(orders(core).message("line-3", wanted(3))) == (3,)
    with pytest.raises(RefusedError, match="the only key"):
        run(core, "retire", new)
    add_director_key(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["director-2.pem", "director-3.pem"]


def test_a_key_that_others_can_read_or_that_is_a_link_signs_nothing(core: Path, tmp_path: Path) -> None:
    run(core, "init")
    folder = director_folder(load_core_config(core))
    path = folder / "director-1.pem"
    path.chmod(0o640)
    with pytest.raises(RefusedError, match="chmod 600"):
        load_director(folder)
    path.chmod(0o600)
    path.rename(tmp_path / "elsewhere.pem")
    path.symlink_to(tmp_path / "elsewhere.pem")
    with pytest.raises(RefusedError, match="not a link"):
        load_director(folder)
    path.unlink()
    path.write_text("no key")
    path.chmod(0o600)
    with pytest.raises(RefusedError, match=r"director-1\.pem: not a PEM key"):
        load_director(folder)


def test_a_fifth_key_is_refused(core: Path) -> None:
    folder = director_folder(load_core_config(core))
    for _ in range(4):
        add_director_key(folder)
    with pytest.raises(RefusedError, match="retire one first"):
        add_director_key(folder)
    assert len(require_director(folder).public_keys) == 4


def test_orders_without_a_key_are_those_of_the_release_before(core: Path) -> None:
    assert decode_desired(orders(core).message("line-3", wanted(1))) == wanted(1)
    assert orders(core).message("line-3", None) == b""


def test_an_order_is_addressed_to_one_device_and_expires_and_older_agents_read_it_too(core: Path, tmp_path: Path) -> None:
    run(core, "init")
    body = orders(core).message("line-3", wanted(2))
    assert decode_desired(body) == wanted(2)  # all that the release before looks at
    document = decode_document(decode_message(body).document, DocumentKind.DESIRED, DesiredModels)
    assert (document.to.devices, document.to.cohorts) == (("line-3",), ())
    assert document.expires_ms == NOW_MS + 10 * DAY_MS
    assert decode_body(document, DesiredModels).models == (wanted(2),)
    nothing = orders(core).message("line-3", None)
    (key,) = run(core, "show", "--bare").split()
    assert OrderTaker(tmp_path / "a", key).take(body) == (2,)
    assert OrderTaker(tmp_path / "b", key).take(nothing) == ()
    assert OrderTaker(tmp_path / "c", key, device="line-4").take(body) is None


def test_counters_grow_with_the_time_and_never_go_back(tmp_path: Path) -> None:
    given = [next_counter(tmp_path, DocumentKind.DESIRED, now_ms) for now_ms in (5_000, 5_000, 4_000, 9_000)]
    assert given == [5_000, 5_001, 5_002, 9_000]
    assert next_counter(tmp_path, DocumentKind.EDGE_POLICY, 1) == 1
    (tmp_path / "desired.counter").unlink()  # a lake restored without it
    assert next_counter(tmp_path, DocumentKind.DESIRED, 10_000) == 10_000


@pytest.mark.parametrize("text", ["", "x", "-1", "9" * 30, "5 5"])
def test_a_counter_that_cannot_be_read_is_not_guessed(tmp_path: Path, text: str) -> None:
    (tmp_path / "desired.counter").write_text(text)
    with pytest.raises(CorruptLakeError, match="delete it"):
        next_counter(tmp_path, DocumentKind.DESIRED, 1)


def test_two_processes_never_get_the_same_counter(tmp_path: Path, repository_root: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from pipelines.director import next_counter;"
        "from schemas.signed_document import DocumentKind;"
        "print(*[next_counter(Path(sys.argv[1]), DocumentKind.DESIRED, 7) for _ in range(40)])"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(repository_root)}
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    given = [int(word) for process in processes for word in process.communicate(timeout=60)[0].split()]
    assert sorted(given) == list(range(7, 87))


def test_all_orders_of_one_round_share_a_counter(core: Path) -> None:
    run(core, "init")
    made = orders(core)
    texts = [decode_message(made.message(name, wanted(1))).document for name in ("line-3", "line-4")]
    assert len({decode_document(text, DocumentKind.DESIRED, DesiredModels).counter for text in texts}) == 1
    later = decode_message(orders(core).message("line-3", wanted(1))).document
    assert msgspec.json.decode(later)["counter"] == NOW_MS + 1


@pytest.mark.parametrize("lifetime_h", [0, -1, 1_000_000])
def test_a_lifetime_out_of_bounds_is_an_error(core: Path, lifetime_h: int) -> None:
    core.write_text(f'lake = "lake"\n[director]\nlifetime_h = {lifetime_h}\n')
    with pytest.raises(ConfigError, match="lifetime_h"):
        load_core_config(core)


def test_keys_lie_beside_the_models_keys_unless_configured_and_never_in_the_lake(tmp_path: Path) -> None:
    (tmp_path / "core.toml").write_text('lake = "lake"\n[director]\nkeys = "secret/director"\n')
    assert director_folder(load_core_config(tmp_path / "core.toml")) == tmp_path / "secret/director"
    plain = CoreConfig(lake=str(tmp_path / "lake"))
    assert director_folder(plain) == tmp_path / "model-keys" / "director"
    assert counters_folder(plain) == tmp_path / "lake" / "models" / "director"
