"""Files that appear whole: what a reader sees, what is synced and in which order, what a failure leaves."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from catchment.runtime.atomic_files import atomic_file, make_folder, sync_file, write_atomic, write_unsynced


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The durable steps taken, in order: `fsync`, `fsync /` of a folder, `replace`."""
    taken: list[str] = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        taken.append("fsync folder" if is_folder else "fsync file")
        fsync(descriptor)

    def watched_replace(*names: Any) -> None:
        taken.append("replace")
        replace(*names)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    return taken


def test_bytes_are_synced_before_the_name_and_the_folder_after_it(tmp_path: Path, steps: list[str]) -> None:
    write_atomic(tmp_path / "a", b"new")
    assert steps == ["fsync file", "replace", "fsync folder"]
    assert (tmp_path / "a").read_bytes() == b"new"


def test_the_old_file_is_seen_until_the_block_ends(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with atomic_file(tmp_path / "a") as file:
        file.write(b"new")
        file.flush()
        assert (tmp_path / "a").read_bytes() == b"old"
    assert (tmp_path / "a").read_bytes() == b"new"


@pytest.mark.parametrize("error", [OSError("full"), ValueError("not this"), KeyboardInterrupt()])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def write_half() -> None:
        with atomic_file(tmp_path / "a") as file:
            file.write(b"half")
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old"}


def test_a_refused_fsync_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def refuse(_descriptor: int) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="no space"):
        write_atomic(tmp_path / "a", b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old"}


def test_files_are_private_unless_a_mode_is_given(tmp_path: Path) -> None:
    write_atomic(tmp_path / "private", b"")
    write_atomic(tmp_path / "shown", b"", mode=0o644)
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "shown").stat().st_mode & 0o777 == 0o644 & ~_umask()


def test_an_unsynced_file_is_whole_and_costs_no_fsync(tmp_path: Path, steps: list[str]) -> None:
    write_unsynced(tmp_path / "a", b"new")
    assert steps == ["replace"]
    assert (tmp_path / "a").read_bytes() == b"new"


def test_every_folder_made_is_synced_in_the_one_above_it(tmp_path: Path, steps: list[str]) -> None:
    make_folder(tmp_path / "a/b/c")
    assert steps == ["fsync folder"] * 3


def test_the_name_of_a_folder_that_is_there_is_synced_again(tmp_path: Path, steps: list[str]) -> None:
    make_folder(tmp_path)
    assert steps == ["fsync folder"]


def test_a_file_that_another_program_wrote_is_synced(tmp_path: Path, steps: list[str]) -> None:
    (tmp_path / "a").write_bytes(b"new")
    sync_file(tmp_path / "a")
    assert steps == ["fsync file"]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
