"""Slides in a lake: real ones where they are at hand, small made ones otherwise."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.imaging.store import SlideRef
from schemas.contract import ChipSpec
from schemas.ids import DeviceId, Digest, SampleKey, StreamName

Refer = Callable[..., SlideRef]


@pytest.fixture(scope="session")
def slides_folder() -> Path:
    data = Path(os.environ.get("CATCHMENT_SHARED_DATA", Path(__file__).parents[4] / "shared/data"))
    folder = data / "slides"
    if not folder.is_dir():
        pytest.skip(f"no shared slides at {folder}; set CATCHMENT_SHARED_DATA")
    return folder


@pytest.fixture
def refer(tmp_path: Path) -> Refer:
    """Put a file under objects/ and refer to it as a slide."""

    def make(source: Path, size: int = 256, overlap: int = 0, level: int = 0, seq: int = 0) -> SlideRef:
        digest = hashlib.sha256(source.read_bytes()).hexdigest()
        place = tmp_path / "objects" / digest
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, place)
        key = SampleKey(DeviceId("scanner-1"), StreamName("slide"), 3, seq)
        spec = ChipSpec(f"s{size}", size, overlap, level)
        return SlideRef(
            key,
            Digest(digest),
            f"objects/{digest}",
            0,
            source.stat().st_size,
            spec,
            1_700_000_000_000_000,
        )

    return make
