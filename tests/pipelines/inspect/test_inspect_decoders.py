"""A decoder is reached by what the bytes are, from a short list; what the sender calls them opens no other."""

import gzip
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import pyvips
from PIL import Image

from pipelines.errors import UninspectableError, UnreadableImageError
from pipelines.imaging.picture_loader import open_header, shrink
from pipelines.inspect.image import decoded, exif_facts, image_facts
from pipelines.policy.contact_sheet import Thumbnails
from pipelines.policy.thumbnail_child import AS_JPEG, AS_TILE, SIDE_PX
from schemas.picture_format import PictureFormat, picture_format

_SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"><rect width="9" height="9"/></svg>'


def _encoded(kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.arange(64 * 48 * 3, dtype=np.uint8).reshape(48, 64, 3)).save(out, kind, **options)
    return out.getvalue()


FOREIGN: dict[str, bytes] = {
    "svg": _SVG,
    "svg after white space": b"\n" * 500 + _SVG,
    "svg with a declaration": b'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY a SYSTEM "file:///etc/passwd">]>' + _SVG,
    "svg compressed": gzip.compress(_SVG),
    "svg behind the head of a TIFF": b"II*\0" + _SVG,
    "svg behind the head of a GIF": b"GIF89a " + _SVG,
    "svg behind the head of a JPEG": b"\xff\xd8\xff" + _SVG,
    "pdf": b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\n",
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
    "magick script": b"push graphic-context\nviewbox 0 0 9 9\nfill 'url(https://localhost/)'\npop graphic-context\n",
    "msl": b'<?xml version="1.0"?><image><read filename="/etc/passwd"/></image>',
    "csv": b"1,2,3\n4,5,6\n",
    "vips": bytes.fromhex("08f2a6b6") + bytes(200),
    "fits": b"SIMPLE  =                    T" + b" " * 3_000,
    "exr": bytes.fromhex("762f3101") + bytes(100),
    "ppm": b"P6 2 2 255\n" + bytes(12),
    "heif": bytes.fromhex("00000018") + b"ftypheic" + bytes(100),
    "avif": bytes.fromhex("00000018") + b"ftypavif" + bytes(100),
    "jpeg 2000": bytes.fromhex("0000000c6a5020200d0a870a") + bytes(100),
    "jpeg xl": bytes.fromhex("ff0a") + bytes(100),
    "bmp": _encoded("BMP"),
    "a whole avif": _encoded("AVIF"),
    "a whole avif behind the head of a TIFF": b"II*\0" + _encoded("AVIF")[4:],
    "psd": b"8BPS\0\1" + bytes(100),
    "ico": bytes.fromhex("00000100") + bytes(100),
    "nothing": b"",
    "zeros": bytes(1_000),
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("look", [image_facts, exif_facts, lambda body: decoded(body, 9, 9)], ids=["image", "exif", "pixels"])
def test_what_is_on_no_list_reaches_no_decoder(name: str, look: Callable[[bytes], object]) -> None:
    with pytest.raises(UninspectableError, match="not a picture"):
        look(FOREIGN[name])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "GIF"])
def test_the_formats_on_the_list_are_read(kind: str) -> None:
    body = _encoded(kind)
    assert picture_format(body) is PictureFormat(kind.lower())
    assert image_facts(body)[:2] == (64, 48)
    assert decoded(body, 9, 9)[0].shape == (7, 9, 3)


def test_every_other_loader_of_the_library_is_blocked() -> None:
    for load in (pyvips.Image.svgload_buffer, pyvips.Image.uhdrload_buffer):
        with pytest.raises(pyvips.Error, match="blocked"):
            load(_SVG)
    with pytest.raises(pyvips.Error):
        pyvips.Image.new_from_buffer(_SVG, "")


def test_a_photograph_with_a_gain_map_is_read_by_the_ordinary_loader() -> None:
    grey = pyvips.Image.black(64, 48, bands=3).linear(1, [100, 120, 90], uchar=True).copy(interpretation="srgb")
    body = bytes(grey.colourspace("scrgb").uhdrsave_buffer())
    assert image_facts(body)[:2] == (64, 48)


def test_the_slow_picture_is_refused_at_its_first_bytes(shared_data: Path) -> None:
    path = shared_data / "odd" / "hostile" / "slow-picture.svg"
    if not path.exists():
        pytest.skip("the shared data hold no such picture")
    with pytest.raises(UninspectableError, match="not a picture"):
        image_facts(path.read_bytes())
    with Thumbnails(AS_JPEG) as thumbnails:
        assert thumbnails.make(path.read_bytes()) is None


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF"])
def test_a_picture_above_the_limit_is_refused_by_its_header(kind: str) -> None:
    body = _encoded(kind)
    with pytest.raises(UnreadableImageError, match="64 x 48 px is above the limit of 3071 pixels"):
        shrink(body, 9, 9, 3_071)
    assert open_header(body, 3_072).width == 64


@pytest.mark.parametrize(("form", "size"), [(AS_JPEG, None), (AS_TILE, SIDE_PX * SIDE_PX * 3)])
def test_thumbnails_are_made_in_a_process_of_their_own(form: bytes, size: int | None) -> None:
    with Thumbnails(form) as thumbnails:
        found = [thumbnails.make(body) for body in (_encoded("PNG"), _SVG, b"no picture", _encoded("JPEG"), _grey())]
    assert [picture is not None for picture in found] == [True, False, False, True, True]
    assert size is None or {len(picture) for picture in found if picture} == {size}


def test_a_picture_that_ends_its_decoder_is_only_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with Thumbnails(AS_JPEG) as thumbnails:
        worker = thumbnails._worker
        request = worker.request

        def deadly(body: bytes, timeout_s: float) -> object:
            if body == b"deadly":
                assert worker.pid is not None
                os.kill(worker.pid, signal.SIGSEGV)
            return request(body, timeout_s)

        monkeypatch.setattr(worker, "request", deadly)
        found = [thumbnails.make(body) for body in (_encoded("PNG"), b"deadly", _encoded("PNG"))]
        assert [picture is not None for picture in found] == [True, False, True]


def test_the_process_that_makes_the_page_decodes_nothing() -> None:
    script = (
        "import sys, pyvips\n"
        "from pipelines.policy.contact_sheet import Thumbnails\n"
        "from pipelines.policy.thumbnail_child import AS_JPEG\n"
        "def never(*a, **k): raise SystemExit('decoded here')\n"
        "pyvips.Image.thumbnail_buffer = never\n"
        "with Thumbnails(AS_JPEG) as t: print(len(t.make(sys.stdin.buffer.read())) > 100)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], input=_encoded("PNG"), capture_output=True, check=True)
    assert done.stdout.strip() == b"True"


def _grey() -> bytes:
    return bytes((pyvips.Image.black(64, 48) + 90).cast("uchar").pngsave_buffer())
