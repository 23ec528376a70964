"""Opening beneath a folder: nothing outside it is reached, by whatever name, link or exchange."""

import os
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from catchment.runtime.beneath import (
    RefusedFileError,
    binary_beneath,
    folder_beneath,
    inner_parts,
    open_beneath,
    rooted,
    status_beneath,
)

SECRET = b"secret"


@pytest.fixture
def room(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_bytes(SECRET)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_bytes(SECRET)
    folder = tmp_path / "room"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "file").write_bytes(b"ours")
    (folder / "deep" / "er" / "file").write_bytes(b"ours, deep")
    (folder / "up").symlink_to("..")
    (folder / "away").symlink_to(tmp_path / "outside")
    (folder / "alias").symlink_to("file")
    os.mkfifo(folder / "pipe")
    return folder


def read(root: Path, name: str) -> bytes:
    with binary_beneath(root, name) as file:
        return file.read()


def test_a_plain_file_is_read_at_any_depth_and_its_object_tells_its_path(room: Path) -> None:
    assert read(room, "file") == b"ours"
    with binary_beneath(room, "deep/er/file") as file:
        assert file.read() == b"ours, deep"
        assert file.name == str(room / "deep/er/file")
    assert status_beneath(room, "file").st_size == 4


def test_the_root_itself_may_be_a_link(room: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(room)
    assert read(tmp_path / "alias", "deep/er/file") == b"ours, deep"


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "../secret", "deep/../../secret", "/etc/passwd", "//etc/passwd", "deep//er/file", "./file", "file/"),
        *("up/secret", "away/file", "alias", "deep/er/../er/file", "file\0", "up", "away"),
        *("pipe", "deep", "deep/er"),
    ],
)
def test_no_name_leads_out_through_a_link_or_to_what_is_no_file(room: Path, name: str) -> None:
    for action in (read, status_beneath):
        with pytest.raises(RefusedFileError):
            action(room, name)


def test_what_is_missing_is_missing_and_not_refused(room: Path) -> None:
    for name in ("gone", "deep/gone", "gone/file"):
        with pytest.raises(FileNotFoundError) as caught:
            read(room, name)
        assert str(room) in str(caught.value.filename)


def test_a_file_where_a_folder_should_be_is_refused(room: Path) -> None:
    with pytest.raises(RefusedFileError, match="not a folder"):
        read(room, "file/inner")


def test_no_descriptor_is_left_open(room: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for name in ("file", "deep/er/file", "away/file", "alias", "pipe", "gone", "deep/gone", "../secret"):
        try:
            os.close(open_beneath(room, name))
        except OSError:
            continue
        with folder_beneath(room, "deep/er"):
            pass
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(alphabet=st.sampled_from("./upawayfilesecrt\\\0 "), max_size=24))
def test_nothing_of_the_outside_is_read_by_any_name(room: Path, name: str) -> None:
    try:
        assert read(room, name) != SECRET
    except OSError:
        return


@pytest.mark.slow
@given(name=st.text())
def test_parts_of_a_name_never_hold_a_way_up_or_out(name: str) -> None:
    try:
        parts = inner_parts(name)
    except ValueError:
        return
    assert "/".join(parts) == name
    assert not {"", ".", ".."} & set(parts)
    assert not name.startswith("/")


@pytest.mark.parametrize("swapped", ["the file", "its folder"])
def test_an_exchange_while_it_is_opened_never_gives_the_outside_file(room: Path, tmp_path: Path, swapped: str) -> None:
    place = room / "deep" / "er"
    name = "deep/er/file"
    stop = threading.Event()

    def exchange() -> None:
        spare = room / "spare"
        while not stop.is_set():
            target = place / "file" if swapped == "the file" else place
            target.rename(spare)
            target.symlink_to(tmp_path / ("outside/file" if swapped == "the file" else "outside"))
            target.unlink()
            spare.rename(target)

    thread = threading.Thread(target=exchange)
    thread.start()
    try:
        seen = set()
        for _ in range(3_000):
            try:
                seen.add(read(room, name))
            except OSError:
                continue
    finally:
        stop.set()
        thread.join()
    assert seen <= {b"ours, deep"}


@pytest.mark.parametrize(
    ("path", "watched", "root", "name"),
    [
        ("/in/masks", "/in", "/in", "masks"),
        ("/in/./a/../masks", "/in/", "/in/", "masks"),
        ("/in", "/in", "/in", ""),
        ("/out/masks", "/in", "/out/masks", ""),
        ("/inner", "/in", "/inner", ""),
        ("w/masks", "w", "w", "masks"),
        ("/in/../masks", "/in", "/in/../masks", ""),
    ],
)
def test_a_configured_path_in_the_watched_folder_is_taken_as_a_name_below_it(
    path: str, watched: str, root: str, name: str
) -> None:
    assert rooted(Path(path), Path(watched)) == (Path(root), name)
