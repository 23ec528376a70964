"""Pictures that are still being copied, or whose copy broke off: told by their format, held back alone, and marked."""

import io
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from edge_agent.sources.api import Source
from edge_agent.sources.directory.picture_formats import has_end
from edge_agent.sources.registry import GuardedSource, build_source
from schemas.contract import Contract, builtin_contract
from tests.fakes.sources import HandClock, build, close_all

NOISE = np.random.default_rng(3).integers(0, 255, (120, 160, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def _close_all() -> Iterator[None]:
    yield
    close_all()


def saved(form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(NOISE).save(out, form, **options)
    return out.getvalue()


def with_thumbnail() -> bytes:
    """A JPEG whose EXIF holds a whole JPEG: its end comes long before the picture's."""
    small, large = saved("JPEG", quality=30), saved("JPEG")
    segment = b"Exif\0\0" + small
    return large[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + large[2:]


def tiff(**options: Any) -> bytes:
    out = io.BytesIO()
    with tifffile.TiffWriter(out, bigtiff=bool(options.pop("big", False))) as file:
        file.write(NOISE, photometric="rgb", **options)
        file.write(NOISE[::2, ::2], photometric="rgb", **options)
    return out.getvalue()


WHOLE: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: saved("JPEG"),
    "progressive jpeg": lambda: saved("JPEG", progressive=True),
    "jpeg with thumbnail": with_thumbnail,
    "png": lambda: saved("PNG"),
    "gif": lambda: saved("GIF"),
    "bmp": lambda: saved("BMP"),
    "webp": lambda: saved("WEBP"),
    "tiff": tiff,
    "tiff of Pillow": lambda: saved("TIFF"),
    "tiled tiff": lambda: tiff(tile=(32, 32)),
    "bigtiff": lambda: tiff(big=True, tile=(32, 32), compression="zlib"),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_picture_has_its_end_whatever_follows_it_and_none_of_its_beginnings_has(kind: str) -> None:
    body = WHOLE[kind]()
    assert has_end(io.BytesIO(body), len(body)) is True
    assert has_end(io.BytesIO(body + b"\0\0trailing"), len(body) + 10) is True
    dice = random.Random(2)
    for cut in (*range(1, 20), *(dice.randrange(20, len(body) - 60) for _ in range(40))):
        assert has_end(io.BytesIO(body[:cut]), cut) is False, cut


def heic() -> bytes:
    """Boxes as a telephone writes them: what is in it, then its content."""
    boxes = ((b"ftyp", b"heic\0\0\0\0mif1heic"), (b"meta", bytes(40)), (b"mdat", NOISE.tobytes()[:4_000]))
    return b"".join(struct.pack(">I4s", len(body) + 8, kind) + body for kind, body in boxes)


@pytest.mark.parametrize(("form", "suffix"), [("JPEG2000", ".jp2"), ("AVIF", ".avif"), ("HEIF", ".heic"), ("WEBP", ".webp")])
def test_a_picture_of_boxes_has_no_end_in_any_of_its_beginnings_nor_in_space_that_was_allocated(form: str, suffix: str) -> None:
    body = heic() if form == "HEIF" else saved(form)
    name = f"x{suffix}"
    assert has_end(io.BytesIO(body), len(body), name) is True
    assert [cut for cut in range(len(body)) if has_end(io.BytesIO(body[:cut]), cut, name) is not False] == []
    for written in (0, len(body) // 3, len(body) - 70):
        space = body[:written] + bytes(len(body) - written)
        assert has_end(io.BytesIO(space), len(space), name) is False


@pytest.mark.parametrize("kind", ["jpeg", "png", "gif"])
def test_space_that_was_allocated_before_the_content_came_is_no_picture(kind: str) -> None:
    body = WHOLE[kind]()
    for written in (0, len(body) // 3, len(body) - 40):
        space = body[:written] + bytes(len(body) - written)
        assert has_end(io.BytesIO(space), len(space), "x.jpg") is False


def test_a_file_that_breaks_off_at_the_end_of_its_thumbnail_has_no_end() -> None:
    body = with_thumbnail()
    cut = body.index(b"\xff\xd9") + 2
    assert cut < len(body) // 2
    assert has_end(io.BytesIO(body[:cut]), cut) is False
    own = b"\xff\xd8\xff\xe0 a maker's own \xff\xd9"
    assert has_end(io.BytesIO(own), len(own)) is True


def test_of_a_jpeg_whose_segments_make_no_sense_the_last_bytes_decide() -> None:
    for seed in range(40):
        noise = b"\xff\xd8\xff\xe0\0\x10" + random.Random(seed).randbytes(400_000).replace(b"\xff\xd9", b"\xff\xda")
        assert has_end(io.BytesIO(noise + b"\xff\xd9"), len(noise) + 2) is True
        assert has_end(io.BytesIO(noise), len(noise)) is False


def test_real_pictures_have_their_ends(shared_data: Path) -> None:
    found = [path for form in ("jpg", "tif", "svs", "mp4") for path in shared_data.rglob(f"*.{form}")]
    assert len(found) > 300
    for path in found:
        with path.open("rb") as file:
            assert has_end(file, path.stat().st_size, path.name) is True, path


def test_what_is_no_known_format_or_hostile_ends_the_look() -> None:
    loop = b"II*\0" + struct.pack("<IH12sI", 8, 1, struct.pack("<HHII", 256, 3, 1, 1), 8)
    many = b"II*\0" + struct.pack("<IH12sI", 8, 1, struct.pack("<HHII", 273, 4, 0xFFFFFFFF, 0), 0)
    for body, wanted in ((b"a text of no picture", None), (loop, True), (many, False), (b"", None)):
        assert has_end(io.BytesIO(body), len(body)) is wanted


def watch(folder: Path, clock: HandClock, position: bytes | None = None, **options: Any) -> GuardedSource:
    return build("directory", "camera_frame", position, clock, path=str(folder), poll_ms=0, settle_ms=100, **options)


def names(source: Source, clock: HandClock, pause_s: float = 0.0) -> list[object]:
    found: list[object] = []
    clock.sleep(pause_s)
    for _ in range(4):
        batch = source.read(10)
        clock.sleep(0.2)
        if batch is not None:
            complete = batch.columns.get("payload_complete", [None] * len(batch))
            found += list(zip(batch.columns["file_name"], complete, strict=True))
            source.stored(batch)
    return found


@pytest.mark.parametrize("done", ["keep", "delete", "move"])
def test_a_half_picture_waits_alone_for_its_end(tmp_path: Path, done: str) -> None:
    clock, body = HandClock(), saved("JPEG")
    source = watch(tmp_path, clock, done=done)
    (tmp_path / "a.jpg").write_bytes(body[:700])
    (tmp_path / "b.jpg").write_bytes(body)
    assert names(source, clock) == [("b.jpg", None)]
    assert names(source, clock, pause_s=20) == []
    with (tmp_path / "a.jpg").open("ab") as file:
        file.write(body[700:1500])
    assert names(source, clock, pause_s=20) == []
    (tmp_path / "a.jpg").write_bytes(body)
    assert names(source, clock) == [("a.jpg", None)]
    assert names(source, clock, pause_s=100) == []


def test_a_picture_that_stays_half_is_a_sample_that_says_so_once_also_over_a_restart(tmp_path: Path) -> None:
    clock, body = HandClock(), saved("PNG")
    (tmp_path / "a.png").write_bytes(body[:-9])
    source = watch(tmp_path, clock, max_settle_s=5.0)
    assert names(source, clock) == []
    (tmp_path / "a.png").chmod(0o640)
    (tmp_path / "b.png").write_bytes(body)
    assert names(source, clock) == [("b.png", None)]
    clock.sleep(4)
    batch = source.read(10)
    assert batch is not None
    assert dict(batch.columns)["payload_complete"] == [False]
    assert batch.payloads == [body[:-9]]
    again = watch(tmp_path, clock, batch.position, max_settle_s=5.0)
    assert names(again, clock, pause_s=10) == []


def test_without_the_column_a_half_picture_is_counted(tmp_path: Path) -> None:
    clock = HandClock()
    (tmp_path / "a.jpg").write_bytes(saved("JPEG")[:-2])
    old = builtin_contract("camera_frame")
    bare = Contract(
        **{field: getattr(old, field) for field in old.__struct_fields__}
        | {"columns": tuple(column for column in old.columns if column.name != "payload_complete")}
    )
    source = build_source(
        "directory", {"path": str(tmp_path), "settle_ms": 0, "poll_ms": 0, "max_settle_s": 0}, bare, clock, None
    )
    batch = source.read(10)
    source.close()
    assert batch is not None
    assert "payload_complete" not in batch.columns
    assert sum(source.rejected.values()) == 1
