"""Watched folders: every file once, whatever the arrivals and restarts; real pictures with what stands beside them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent.sources.registry import GuardedSource
from tests.fakes.sources import HandClock, build, close_all, column, count, drain


@pytest.fixture(autouse=True)
def _close_all() -> Iterator[None]:
    yield
    close_all()


PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (640).to_bytes(4, "big") + (480).to_bytes(4, "big") + b"\x08\x02\0\0\0" + bytes(4)
PNG += b"\0\0\0\0IEND\xaeB`\x82"  # what follows the end is no part of the picture


def watch(folder: Path, position: bytes | None = None, clock: HandClock | None = None, **options: object) -> GuardedSource:
    options = {"path": str(folder), "settle_ms": 0, "poll_ms": 0, "end_when_idle": True, **options}
    return build("directory", "camera_frame", position, clock, **options)


def test_dashcam_frames_come_whole_with_the_table_beside_them(shared_data: Path) -> None:
    folder = shared_data / "vehicle/dashcam"
    got = drain(
        watch(
            folder / "frames",
            attributes=str(folder / "frames.csv"),
            time="t_s",
            time_start="2024-05-01T00:00:00Z",
            columns={"camera": "front"},
        )
    )
    assert count(got) == 221
    by_name = dict(zip(column(got, "file_name"), column(got, "frame"), strict=True))
    assert by_name == {f"frame_{number:04d}.jpg": number for number in range(221)}
    assert set(column(got, "width")) == {960}
    assert set(column(got, "height")) == {540}
    payloads = [payload for batch in got for payload in batch.payloads or ()]
    assert sum(len(payload) for payload in payloads if isinstance(payload, bytes)) == sum(
        path.stat().st_size for path in (folder / "frames").glob("*.jpg")
    )


def test_factory_pictures_carry_their_polygons(shared_data: Path) -> None:
    folder = shared_data / "factory/bsdata"
    got = drain(
        watch(
            folder / "images", attributes=str(folder / "index.csv"), sidecars=str(folder / "labels"), rename={"bsd_type": "label"}
        )
    )
    annotations = [json.loads(str(text)) for text in column(got, "annotation") if text is not None]
    assert count(got) == len(list((folder / "images").iterdir()))
    assert len(annotations) == len(list((folder / "labels").iterdir()))
    assert all(item["shapes"] is not None and "imageData" not in item for item in annotations)


def test_slides_tell_their_size_without_being_decoded(shared_data: Path) -> None:
    source = build("directory", "slide", path=str(shared_data / "slides"), settle_ms=0, end_when_idle=True)
    got = drain(source)
    sizes = dict(zip(column(got, "file_name"), zip(column(got, "width"), column(got, "height"), strict=True), strict=True))
    assert sizes["CMU-1-Small-Region.svs"] == (2220, 2967)
    assert sizes["cog_world.tif"] == (36000, 18000)
    large = [payload for batch in got for payload in batch.payloads or () if isinstance(payload, Path)]
    assert sorted(path.name for path in large) == ["CMU-1-Small-Region.svs", "cog_world.tif", "hela-cells.tif"]


def test_a_file_that_is_still_written_waits(tmp_path: Path) -> None:
    clock = HandClock()
    source = watch(tmp_path, None, clock, settle_ms=500, end_when_idle=False)
    (tmp_path / "a.png").write_bytes(PNG)
    assert source.read(10) is None
    clock.sleep(0.4)
    (tmp_path / "a.png").write_bytes(PNG + b"more")
    assert source.read(10) is None
    clock.sleep(0.4)
    assert source.read(10) is None
    clock.sleep(0.4)
    batch = source.read(10)
    assert batch is not None
    assert batch.payloads == [PNG + b"more"]


@pytest.mark.parametrize("done", ["keep", "delete", "move"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(data=st.data())
def test_any_arrivals_and_restarts_give_every_file_once(
    tmp_path_factory: pytest.TempPathFactory, done: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("watched")
    arrived: list[str] = []
    got: list[object] = []
    position: bytes | None = None
    source = watch(folder, position, done=done, end_when_idle=False)
    for step in data.draw(st.lists(st.sampled_from(["file", "read", "lost", "restart"]), max_size=25)):
        if step == "file":
            name = f"{data.draw(st.integers(0, 9))}-{len(arrived)}.png"
            (folder / f".{name}").write_bytes(PNG + name.encode())
            (folder / f".{name}").rename(folder / name)
            arrived.append(name)
        elif step == "restart":
            source = watch(folder, position, done=done, end_when_idle=False)
        else:
            batch = source.read(data.draw(st.integers(1, 3)))
            if batch is None:
                continue
            got += batch.columns["file_name"]
            position = batch.position
            if step == "read":
                source.stored(batch)
    end = watch(folder, position, done=done)
    got += [name for batch in drain(end) for name in batch.columns["file_name"]]
    assert sorted(map(str, got)) == sorted(arrived)
    assert len(list(folder.glob("*.png"))) == (len(arrived) if done == "keep" else 0)
    assert len(list(folder.glob("done/*.png"))) == (len(arrived) if done == "move" else 0)


def test_a_file_that_was_written_anew_after_it_was_read_is_not_deleted(tmp_path: Path) -> None:
    source = watch(tmp_path, done="delete")
    (tmp_path / "a.png").write_bytes(PNG)
    batch = source.read(1)
    assert batch is not None
    (tmp_path / "a.png").write_bytes(PNG + b"second picture of that name")
    source.stored(batch)
    second = source.read(1)
    assert second is not None
    assert second.payloads == [PNG + b"second picture of that name"]


def test_a_broken_sidecar_is_counted_and_the_picture_comes_without_it(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "a.json").write_text("{")
    source = watch(tmp_path)
    assert column(drain(source), "width") == [640]
    assert source.rejected == {"cell: sidecar is no JSON": 1}
