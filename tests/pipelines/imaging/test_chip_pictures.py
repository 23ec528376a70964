"""Pictures without tiles are cut like slides: pixels as another decoder reads them, or a refusal by name."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from PIL import Image

from pipelines.imaging import pictures
from pipelines.imaging.graph import cut_chips
from pipelines.imaging.store import ChipFile, SlideRef
from pipelines.lake.lake import lake_at

Refer = Callable[..., SlideRef]
SHAPE = (230, 170)


def cut(lake: Path, slide: SlideRef) -> ChipFile:
    (file,) = cut_chips(lake_at(lake), 1, (slide,), 10**9)
    return file


def whole(lake: Path, file: ChipFile) -> tuple[np.ndarray, dict[str, Any]]:
    assert file.rejection is None, file.rejection
    rows = pq.read_table(lake / file.path).to_pylist()
    array: Any = zarr.open_array(str(lake / rows[0]["zarr_path"]), mode="r")
    made = np.zeros((*SHAPE, array.shape[3]), array.dtype)
    for r in rows:
        made[r["y"] : r["y"] + r["height"], r["x"] : r["x"] + r["width"]] = array[r["chip_index"], : r["height"], : r["width"]]
    return made, rows[0]


def sample(channels: int, dtype: str = "uint8") -> np.ndarray:
    y, x = np.mgrid[0 : SHAPE[0], 0 : SHAPE[1]]
    stacked = np.stack([x * 3 + y * k for k in range(1, channels + 1)], axis=-1) % 251
    return np.squeeze((stacked * (200 if dtype == "uint16" else 1)).astype(dtype))


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def by_pillow(mode: str, kind: str, **options: Any) -> tuple[bytes, np.ndarray]:
    channels = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "P": 1, "1": 1, "I;16": 1}[mode]
    pixels = sample(channels, "uint16" if mode == "I;16" else "uint8")
    image = Image.fromarray(pixels).convert(mode) if mode in ("P", "1") else Image.fromarray(pixels)
    body = saved(image, kind, **options)
    read = Image.open(io.BytesIO(body))
    return body, np.asarray(read.convert("RGB") if mode == "P" else read.convert("L") if mode == "1" else read)


PICTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "png gray": ("L", "PNG", {}),
    "png gray and alpha": ("LA", "PNG", {}),
    "png rgb": ("RGB", "PNG", {}),
    "png rgba": ("RGBA", "PNG", {}),
    "png palette": ("P", "PNG", {}),
    "png one bit": ("1", "PNG", {}),
    "png 16 bits": ("I;16", "PNG", {}),
    "jpeg": ("RGB", "JPEG", {"quality": 90}),
    "jpeg gray": ("L", "JPEG", {}),
    "jpeg progressive": ("RGB", "JPEG", {"progressive": True}),
    "webp lossless": ("RGBA", "WEBP", {"lossless": True}),
    "webp": ("RGB", "WEBP", {"quality": 80}),
    "jp2": ("RGB", "JPEG2000", {"irreversible": False}),
    "jp2 gray": ("L", "JPEG2000", {"no_jp2": True}),
    "avif": ("RGB", "AVIF", {"quality": 90}),
}


@pytest.mark.parametrize("name", sorted(PICTURES))
def test_a_picture_that_pillow_wrote_has_the_pixels_that_pillow_reads(tmp_path: Path, refer: Refer, name: str) -> None:
    mode, kind, options = PICTURES[name]
    body, wanted = by_pillow(mode, kind, **options)
    (tmp_path / "a").write_bytes(body)
    made, row = whole(tmp_path, cut(tmp_path, refer(tmp_path / "a", 64)))
    assert (made == wanted.reshape(made.shape)).all()
    assert row["media_type"] == ("image/jpeg" if kind == "JPEG" else "image/png")
    assert bool(row["converted"]) == (mode in ("P", "1"))


def test_a_jpeg_xl_is_cut(tmp_path: Path, refer: Refer) -> None:
    pixels = sample(3, "uint16")
    (tmp_path / "a").write_bytes(imagecodecs.jpegxl_encode(pixels, lossless=True))
    made, _ = whole(tmp_path, cut(tmp_path, refer(tmp_path / "a", 100)))
    assert (made == pixels).all()


def test_a_picture_is_read_in_strips_each_once(tmp_path: Path, refer: Refer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_STRIP_BYTES", 170 * 3 * 20)
    body, wanted = by_pillow("RGB", "PNG")
    (tmp_path / "a").write_bytes(body)
    file = cut(tmp_path, refer(tmp_path / "a", 50, 30))
    made, _ = whole(tmp_path, file)
    assert (made == wanted).all()
    assert file.tiles_decoded == -(-SHAPE[0] // 20)


def test_orientation_profile_and_scale_of_a_photo_are_kept_and_its_pixels_stay_in_their_order(
    tmp_path: Path, refer: Refer
) -> None:
    image = Image.fromarray(sample(3))
    exif = Image.Exif()
    exif[274] = 6
    (tmp_path / "a").write_bytes(saved(image, "JPEG", exif=exif, icc_profile=b"p" * 200, dpi=(25_400, 25_400)))
    made, row = whole(tmp_path, cut(tmp_path, refer(tmp_path / "a", 256)))
    assert made.shape[:2] == SHAPE
    assert row["orientation"] == 6
    assert len(row["icc_sha256"]) == 64
    assert row["mpp_x"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("cmyk", "channels of cmyk"), ("gif", "of the kind gif"), ("heic", "of the kind heic"), ("short", "cannot")],
)
def test_a_picture_that_is_not_cut_is_refused_by_name(tmp_path: Path, refer: Refer, kind: str, reason: str) -> None:
    photo = saved(Image.fromarray(np.random.default_rng(1).integers(0, 255, (*SHAPE, 3), np.uint8)), "JPEG")
    bodies = {
        "cmyk": saved(Image.fromarray(sample(3)).convert("CMYK"), "JPEG"),
        "gif": saved(Image.fromarray(sample(1)), "GIF"),
        "heic": b"\0\0\0\x18ftypheic" + bytes(40),
        "short": photo[: len(photo) // 2],
    }
    (tmp_path / "a").write_bytes(bodies[kind])
    assert reason in str(cut(tmp_path, refer(tmp_path / "a", 64)).rejection)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "JPEG2000", "AVIF"])
def test_a_picture_above_the_limit_is_refused_before_it_is_decoded(tmp_path: Path, refer: Refer, kind: str) -> None:
    (tmp_path / "a").write_bytes(by_pillow("RGB", kind)[0])
    (file,) = cut_chips(lake_at(tmp_path), 1, (refer(tmp_path / "a", 64),), 100)
    assert "above" in str(file.rejection)
