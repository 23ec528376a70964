"""What the image and exif inspectors see, next to what Pillow and NumPy see."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from pipelines.errors import UninspectableError
from pipelines.inspect.image import exif_facts, image_facts
from pipelines.inspect.run import bursts

Draw = Callable[..., bytes]


def bits_apart(one: bytes, other: bytes) -> int:
    first, second = (int(image_facts(body)[-1], 16) for body in (one, other))
    return (first ^ second).bit_count()


def test_the_statistics_of_a_small_picture_are_those_that_numpy_gives(draw: Draw) -> None:
    body = draw(1, form="PNG")
    width, height, mean, contrast, sharpness, entropy, colourfulness, _hash = image_facts(body)
    pixels = np.asarray(Image.open(io.BytesIO(body)), np.float64)
    luma = pixels @ [0.299, 0.587, 0.114]
    laplacian = 4 * luma[1:-1, 1:-1] - luma[:-2, 1:-1] - luma[2:, 1:-1] - luma[1:-1, :-2] - luma[1:-1, 2:]
    one, other = pixels[..., 0] - pixels[..., 1], (pixels[..., 0] + pixels[..., 1]) / 2 - pixels[..., 2]
    shares = np.unique(luma.astype(np.float32).astype(np.uint8), return_counts=True)[1] / luma.size
    assert (width, height) == (200, 120)
    assert mean == pytest.approx(luma.mean(), rel=1e-4)
    assert contrast == pytest.approx(luma.std(), rel=1e-4)
    assert sharpness == pytest.approx(laplacian.var(), rel=1e-3)
    assert entropy == pytest.approx(-(shares * np.log2(shares)).sum(), abs=0.05)
    assert colourfulness == pytest.approx(np.hypot(one.std(), other.std()) + 0.3 * np.hypot(one.mean(), other.mean()), rel=1e-3)


def test_a_picture_of_one_shade_has_no_contrast_no_edges_and_no_entropy() -> None:
    body = io.BytesIO()
    Image.new("L", (64, 64), 77).save(body, "PNG")
    facts = image_facts(body.getvalue())
    assert list(facts[2:7]) == pytest.approx([77, 0, 0, 0, 0])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_pictures_of_every_colour_model_are_read(mode: str) -> None:
    body = io.BytesIO()
    form = "TIFF" if mode in ("CMYK", "I;16") else "PNG"
    Image.new(mode, (40, 30)).save(body, form)
    assert image_facts(body.getvalue())[:2] == (40, 30)


def test_a_one_pixel_picture_is_inspected() -> None:
    body = io.BytesIO()
    Image.new("RGB", (1, 1), (255, 0, 0)).save(body, "PNG")
    assert image_facts(body.getvalue())[:2] == (1, 1)


def test_hashes_of_alike_pictures_are_near_and_of_others_far(draw: Draw) -> None:
    one = draw(1)
    assert bits_apart(one, draw(1, quality=40)) <= 4
    assert bits_apart(one, draw(1, shift=10)) <= 4
    assert bits_apart(one, draw(1, width=400, height=240)) <= 4
    assert min(bits_apart(one, draw(seed)) for seed in range(2, 12)) > 12


@given(st.binary(max_size=300))
def test_bytes_that_are_no_picture_are_reported_as_such(body: bytes) -> None:
    for look in (image_facts, exif_facts):
        with pytest.raises(UninspectableError, match="not a picture"):
            look(body)


def test_a_picture_cut_short_is_inspected_or_refused_but_never_worse(draw: Draw) -> None:
    body = draw(1)
    for end in range(0, len(body), 97):
        try:
            image_facts(body[:end])
        except UninspectableError:
            continue


def test_a_header_that_claims_a_huge_picture_is_refused_before_a_pixel_is_read() -> None:
    body = io.BytesIO()
    Image.new("L", (1, 1)).save(body, "BMP")
    claimed = bytearray(body.getvalue())
    claimed[18:26] = (60_000).to_bytes(4, "little") * 2
    with pytest.raises(UninspectableError):
        image_facts(bytes(claimed))


def test_what_the_camera_wrote_is_read_with_its_place() -> None:
    exif = Image.Exif()
    exif[271], exif[272], exif[305], exif[274] = "Maker (M)", "Model 7", "soft", 6
    exif.get_ifd(34665).update({33434: IFDRational(1, 250), 33437: IFDRational(28, 10), 34855: 400, 36867: "2026:01:02 03:04:05"})
    exif.get_ifd(34853).update({1: "S", 2: (33.0, 30.0, 36.0), 3: "E", 4: (151.0, 15.0, 0.0)})
    body = io.BytesIO()
    Image.new("RGB", (8, 8)).save(body, "JPEG", exif=exif)
    facts = exif_facts(body.getvalue())
    assert facts[:8] == (
        "Maker (M)", "Model 7", "soft", "2026:01:02 03:04:05", 6, 0.004, 2.8, 400,
    )  # fmt: skip
    assert facts[8:] == pytest.approx((-33.51, 151.25))


def test_a_picture_without_exif_has_only_nulls(draw: Draw) -> None:
    assert set(exif_facts(draw())) == {None}


def test_a_burst_ends_where_the_picture_differs_from_its_first_and_at_another_device() -> None:
    hashes = ["00", "01", "03", None, "ff", "00"]
    names, places = bursts(["a", "a", "a", "a", "a", "b"], [1] * 6, [0, 1, 2, 3, 4, 0], hashes, near_bits=1)
    assert names == ["1-0", "1-0", "1-2", None, "1-4", "1-0"]
    assert places == [0, 1, 0, None, 0, 0]


def test_alike_pictures_of_parts_that_came_by_later_are_no_burst() -> None:
    hashes, times_us = ["0f"] * 5, [0, 10_000_000, 20_000_000, 30_000_001, None]
    assert bursts(["a"] * 5, [1] * 5, list(range(5)), hashes, times_us)[1] == [0, 1, 2, 0, 1]
    assert bursts(["a"] * 5, [1] * 5, list(range(5)), hashes, times_us, near_s=11.0)[1] == [0, 1, 2, 3, 4]


def test_bursts_follow_the_device_s_order_and_not_the_table_s() -> None:
    names, places = bursts(["a"] * 3, [1] * 3, [2, 0, 1], ["0f", "0f", "0f"])
    assert names == ["1-0"] * 3
    assert places == [2, 0, 1]
