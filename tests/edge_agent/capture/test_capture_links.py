"""Watched folders and named files: a link, a pipe or a second name never makes the agent read what is not data."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image

from catchment.runtime.clock import SystemClock
from edge_agent.capture.encode import BatchLimits, Encoder
from edge_agent.errors import AgentError, ConfigError, SourceError
from edge_agent.sources.registry import GuardedSource, build_source
from edge_agent.spool.payload_files import SpoolObjects
from schemas.contract import builtin_contract
from tests.fakes.zeek_writer import HEADER, close_all, follow, uids
from tests.plant.present import present

FRAMES = builtin_contract("camera_frame")
_BUILT: list[GuardedSource] = []
KEY = b"-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIGtleQ==\n-----END PRIVATE KEY-----\n"
PICTURE = b"\xff\xd8\xff\xe0 a picture \xff\xd9"


@pytest.fixture(autouse=True)
def _close_all() -> Iterator[None]:
    yield
    close_all()
    while _BUILT:
        _BUILT.pop().close()


def build(kind: str, stream: str, options: dict[str, object]) -> GuardedSource:
    _BUILT.append(build_source(kind, options, builtin_contract(stream), SystemClock(), None))
    return _BUILT[-1]


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "secret" / "device.key"
    path.parent.mkdir()
    path.write_bytes(KEY)
    path.chmod(0o600)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "watched"
    made.mkdir()
    return made


def watch(folder: Path, **options: Any) -> GuardedSource:
    given = {"path": str(folder), "pattern": "*", "settle_ms": 0, "poll_ms": 0, **options}
    return build("directory", "camera_frame", given)


def everything(source: GuardedSource, tries: int = 4) -> dict[str, dict[str, object]]:
    """File name -> its columns and payload, of all that comes."""
    found: dict[str, dict[str, object]] = {}
    for _ in range(tries):
        batch = source.read(100)
        if batch is not None:
            payloads = present(batch.payloads)
            for row, name in enumerate(map(str, batch.columns["file_name"])):
                found[name] = {column: values[row] for column, values in batch.columns.items()}
                found[name]["payload"] = payloads[row]
    return found


def holds_the_key(found: object) -> bool:
    return b"PRIVATE KEY" in repr(found).encode()


def test_a_link_a_pipe_and_a_second_name_in_a_watched_folder_are_refused_and_counted_once(folder: Path, key: Path) -> None:
    (folder / "a.jpg").write_bytes(PICTURE)
    (folder / "b.jpg").symlink_to(key)
    (folder / "c.jpg").symlink_to("a.jpg")
    (folder / "d.jpg").symlink_to("gone")
    os.mkfifo(folder / "e.jpg")
    os.link(key, folder / "f.jpg")
    source = watch(folder)
    found = everything(source, tries=6)
    assert set(found) == {"a.jpg"}
    assert not holds_the_key(found)
    assert source.rejected == {
        "file: a link; links are not followed here": 3,
        "file: a named pipe, not a file": 1,
        "file: a second name (hard link) of a file that is private or another user's": 1,
    }


def test_a_second_name_of_a_file_that_all_may_read_is_a_picture_as_any_other(folder: Path) -> None:
    (folder / "a.jpg").write_bytes(PICTURE)
    os.link(folder / "a.jpg", folder / "keep.bak")
    assert set(everything(watch(folder, pattern="*.jpg"))) == {"a.jpg"}


def test_a_file_exchanged_for_a_link_between_look_and_read_is_not_read(folder: Path, key: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        (folder / name).write_bytes(PICTURE)
    source = watch(folder)
    first = None
    while first is None:
        first = source.read(1)  # both are ready now, one is read
    (folder / "b.jpg").unlink()
    (folder / "b.jpg").symlink_to(key)
    found = everything(source)
    assert found == {}
    assert sum(source.rejected.values()) >= 1


def test_a_file_exchanged_for_another_of_the_same_size_and_time_is_not_read_as_the_one_seen(folder: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        (folder / name).write_bytes(PICTURE)
    source = watch(folder)
    first = None
    while first is None:
        first = source.read(1)
    other = folder / ".other"
    other.write_bytes(PICTURE[::-1])
    seen = (folder / "b.jpg").stat()
    os.utime(other, ns=(seen.st_mtime_ns, seen.st_mtime_ns))
    other.replace(folder / "b.jpg")
    second = source.read(1)
    assert second is None
    assert "changed" in next(iter(source.rejected))


@pytest.mark.parametrize("swap", ["link", "file", "pipe"])
def test_a_large_file_exchanged_before_it_is_stored_is_refused_not_stored(
    folder: Path, key: Path, tmp_path: Path, swap: str
) -> None:
    (folder / "a.jpg").write_bytes(PICTURE * 100)
    source = watch(folder, part_threshold_bytes=100)
    batch = None
    while batch is None:
        batch = source.read(10)
    (folder / "a.jpg").unlink()
    if swap == "link":
        (folder / "a.jpg").symlink_to(key)
    elif swap == "pipe":
        os.mkfifo(folder / "a.jpg")
    else:
        (folder / "a.jpg").write_bytes(KEY)
    store = SpoolObjects(tmp_path / "objects")
    encoder = Encoder(FRAMES, BatchLimits(1 << 20, 100), store.put)
    with pytest.raises(OSError, match=r"link|changed|pipe"):
        encoder.encode(batch, 0)
    assert not any(b"PRIVATE" in path.read_bytes() for path in (tmp_path / "objects").iterdir())
    assert store.total_bytes == 0


@pytest.mark.parametrize(
    ("is_inside", "planted"),
    [(True, "file"), (True, "folder"), (False, "file")],  # a folder beside it that the configuration names may be a link
)
def test_a_linked_mask_or_sidecar_is_refused_with_a_reason_and_the_picture_is_kept(
    folder: Path, key: Path, tmp_path: Path, is_inside: bool, planted: str
) -> None:
    masks = folder / "masks" if is_inside else tmp_path / "masks"
    labels = folder / "labels" if is_inside else tmp_path / "labels"
    (folder / "a.jpg").write_bytes(PICTURE)
    (key.parent / "a.png").write_bytes(KEY)
    (key.parent / "a.json").write_text('{"label": "BEGIN PRIVATE KEY"}')
    for place, name in ((masks, "a.png"), (labels, "a.json")):
        if planted == "folder":
            place.symlink_to(key.parent)
        else:
            place.mkdir()
            (place / name).symlink_to(key.parent / name)
    source = watch(folder, pattern="*.jpg", masks=str(masks), sidecars=str(labels))
    found = everything(source)
    assert found["a.jpg"]["payload"] == PICTURE
    assert not holds_the_key(found)
    refused = {reason for reason in source.rejected if "link" in reason}
    assert {reason.split(" ")[1] for reason in refused} == {"mask", "sidecar"}
    assert source.rejected == dict.fromkeys(refused, 1)


def test_a_sidecar_or_mask_that_is_a_pipe_or_a_second_name_of_a_key_holds_nobody_up(folder: Path, key: Path) -> None:
    (folder / "a.jpg").write_bytes(PICTURE)
    (folder / "m").mkdir()
    os.mkfifo(folder / "a.json")
    os.link(key, folder / "m" / "a.png")
    source = watch(folder, pattern="*.jpg", masks=str(folder / "m"))
    found = everything(source)
    assert found["a.jpg"].get("mask") is None
    assert sum(source.rejected.values()) == 2


def test_a_table_of_attributes_that_is_a_link_is_refused(folder: Path, key: Path) -> None:
    (folder / "index.csv").symlink_to(key)
    with pytest.raises(ConfigError, match="link"):
        watch(folder, attributes=str(folder / "index.csv"))


def test_a_watched_folder_that_the_configuration_names_may_be_a_link_itself(folder: Path, tmp_path: Path) -> None:
    (folder / "a.jpg").write_bytes(PICTURE)
    (folder / "a.json").write_text('{"label": "crack"}')
    alias = tmp_path / "alias"
    alias.symlink_to(folder)
    assert everything(watch(alias, pattern="*.jpg"))["a.jpg"]["payload"] == PICTURE


def test_captured_files_are_not_moved_through_a_planted_link(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (folder / "a.jpg").write_bytes(PICTURE)
    (folder / "done").symlink_to(elsewhere)
    source = watch(folder, pattern="*.jpg", done="move")
    batch = None
    while batch is None:
        batch = source.read(10)
    with pytest.raises(SourceError, match="link"):
        source.stored(batch)
    assert list(elsewhere.iterdir()) == []
    assert (folder / "a.jpg").read_bytes() == PICTURE


@pytest.mark.parametrize("kind", ["link", "pipe", "second name"])
@pytest.mark.parametrize("name", ["rows.csv", "conn.log", "clip.mp4", "bus.log"])
def test_a_named_file_that_is_a_link_a_pipe_or_a_second_name_is_not_read(folder: Path, key: Path, kind: str, name: str) -> None:
    path = folder / name
    if kind == "link":
        path.symlink_to(key)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        os.link(key, path)
    sources: dict[str, tuple[str, str, dict[str, object]]] = {
        "rows.csv": ("replay", "vehicle_telemetry", {"path": str(path)}),
        "conn.log": ("zeek", "network_flow", {"path": str(path)}),
        "clip.mp4": ("camera", "camera_frame", {"source": str(path)}),
        "bus.log": ("can", "can_signal", {"log": str(path), "dbc": [str(_dbc(folder))]}),
    }
    source_kind, stream, options = sources[name]
    with pytest.raises(AgentError, match=kind):
        build(source_kind, stream, options).read(10)


def _dbc(folder: Path) -> Path:
    path = folder / "car.dbc"
    path.write_text('VERSION ""\nBU_: XXX\nBO_ 180 SPEED: 8 XXX\n SG_ SPEED : 47|16@0+ (0.01,0) [0|250] "km/h" XXX\n')
    return path


def test_a_rotated_log_that_is_a_link_is_passed_over_and_counted_once(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.log"
    other.write_text(HEADER.format(n=9) + "1\tStolen\t-\ttcp\n")
    log = folder / "conn.log"
    log.write_text(HEADER.format(n=1) + "1\tCa\t-\ttcp\n")
    source = follow(log)
    seen, _ = uids(source)
    (folder / "conn.2024-01-01-00-00-00.log").symlink_to(other)
    os.mkfifo(folder / "conn.2024-01-02-00-00-00.log")
    for _ in range(3):
        seen += uids(source)[0]
        log.rename(folder / "conn.2024-01-03-00-00-00.log")
        log.write_text(HEADER.format(n=2) + "2\tCb\t-\ttcp\n")
        seen += uids(source)[0]
        break
    assert "Stolen" not in seen
    assert source.rejected == {
        "file: a link; links are not followed here": 1,
        "file: a named pipe, not a file": 1,
    }


def test_rotated_logs_below_a_linked_folder_are_not_read(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "conn.1.log").write_text(HEADER.format(n=9) + "1\tStolen\t-\ttcp\n")
    (folder / "day").symlink_to(other)
    log = folder / "conn.log"
    log.write_text(HEADER.format(n=1) + "1\tCa\t-\ttcp\n")
    source = build("zeek", "network_flow", {"path": str(log), "rotated": ["*/conn.*.log"], "start": "rotated"})
    assert uids(source)[0] == ["Ca"]
    assert source.rejected == {"file: a link; links are not followed here": 1}


def test_a_log_exchanged_for_a_link_is_not_followed(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.log"
    other.write_text(HEADER.format(n=9) + "1\tStolen\t-\ttcp\n")
    log = folder / "conn.log"
    log.write_text(HEADER.format(n=1) + "1\tCa\t-\ttcp\n")
    source = follow(log)
    assert uids(source)[0] == ["Ca"]
    log.unlink()
    log.symlink_to(other)
    with pytest.raises(SourceError, match="link"):
        uids(source)


def test_a_video_that_is_a_playlist_reads_no_other_file(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.mp4"
    with av.open(str(secret), "w") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(3):
            out.mux(stream.encode(av.VideoFrame.from_image(Image.new("RGB", (64, 64)))))
        out.mux(stream.encode(None))
    playlist = folder / "clip.mp4"
    lists = (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{secret}\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile '{secret}'\n",
    )
    for text in lists:
        playlist.write_text(text)
        with pytest.raises(SourceError):
            everything(build("camera", "camera_frame", {"source": str(playlist), "time_start": "now"}))
