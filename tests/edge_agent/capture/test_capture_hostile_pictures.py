"""A picture made to harm its decoder harms a process of its own; the agent goes on, and stores nothing unredacted."""

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import pytest
from PIL import Image

from catchment.runtime.worker.outcome import Died
from edge_agent import redaction
from edge_agent.errors import ConfigError, SourceError
from edge_agent.pictures.process import HarmfulPictureError, PictureProcess
from edge_agent.redaction import BatchRedactor
from edge_agent.sources.api import Rejects, SampleBatch
from schemas.contract import Column, ColumnType, Contract, ImageRedact, PayloadSpec
from tests.plant.present import present

_HIDE = ImageRedact("fill", boxes=((0.0, 0.0, 0.5, 0.5),))
_CONTRACT = Contract(
    name="camera_frame",
    version="1.0.0",
    columns=(Column("camera", ColumnType.STRING),),
    payload=PayloadSpec(media_types=("image/png", "image/jpeg"), max_bytes=1 << 27, redact=_HIDE),
)


def _picture(side: int = 32, mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    Image.new(mode, (side, side), "white").save(out, "PNG", compress_level=1)
    return out.getvalue()


@pytest.fixture
def decoder() -> Iterator[PictureProcess]:
    decoder = PictureProcess("redact")
    yield decoder
    decoder.close()


def _peak_kib() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


@pytest.mark.parametrize("kind", ["inspect", "redact"])
def test_a_decompression_bomb_costs_the_agent_no_memory_and_the_next_picture_nothing(
    kind: Literal["inspect", "redact"],
) -> None:
    decoder = PictureProcess(kind, memory_bytes=128 * 1024 * 1024)
    bomb, large = _picture(9_000, "1"), _picture(5_000)  # above the limit of pixels; above that of memory
    others = (b"GIF89a" + bytes(100), b"%!PS-Adobe-3.0 EPSF-3.0\n", b'<svg xmlns="http://www.w3.org/2000/svg"/>', b"")
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    before = _peak_kib()
    for body in (bomb, large, *others):
        with pytest.raises(HarmfulPictureError):
            decoder.facts(body) if kind == "inspect" else decoder.redact(_HIDE, body, None)
    assert _peak_kib() - before < 48 * 1024
    assert decoder.facts(_picture())[:2] == (32, 32) if kind == "inspect" else decoder.redact(_HIDE, _picture(), None)
    decoder.close()


def test_a_decoder_that_was_ended_from_outside_is_started_again(decoder: PictureProcess) -> None:
    for _ in range(3):
        assert Image.open(io.BytesIO(decoder.redact(_HIDE, _picture(), None))).getpixel((0, 0)) == (0, 0, 0)
        os.kill(present(decoder.pid), signal.SIGKILL)


def test_a_picture_that_ends_its_decoder_twice_is_refused_and_counted_and_never_stored_as_it_is(
    monkeypatch: pytest.MonkeyPatch, decoder: PictureProcess
) -> None:
    request, bodies = decoder._worker.request, []

    def deadly(body: bytes, timeout_s: float) -> object:
        bodies.append(body)
        return Died(signal.SIGSEGV, 0) if b"deadly" in body else request(body, timeout_s)

    monkeypatch.setattr(decoder._worker, "request", deadly)
    monkeypatch.setattr(redaction, "shared_pictures", lambda _kind: decoder)
    rejects = Rejects("test")
    batch = SampleBatch([1, 2, 3], {"camera": ["a", "b", "c"]}, [_picture(), b"deadly", _picture()])
    stored = BatchRedactor(_CONTRACT, b"", rejects)(batch)
    assert stored.columns["camera"] == ["a", "c"]
    assert stored.payloads is not None
    assert all(payload not in present(batch.payloads) for payload in stored.payloads)
    assert sum(rejects.counts.values()) == 1
    assert sum(b"deadly" in body for body in bodies) == 2


def test_without_a_decoder_nothing_is_refused_but_the_source_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, decoder: PictureProcess
) -> None:
    def nothing() -> object:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(decoder._worker, "start", nothing)
    with pytest.raises(SourceError, match="tried again"):
        decoder.redact(_HIDE, _picture(), None)


def test_a_missing_extra_is_an_error_of_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "shared_pictures", partial(PictureProcess, needs=("no_such_module",)))
    with pytest.raises(ConfigError, match=r"install catchment\[redact\] \(pillow\); no_such_module is not installed"):
        BatchRedactor(_CONTRACT, b"", Rejects("test"))


def test_the_agent_s_own_process_loads_no_decoder() -> None:
    script = (
        "import sys\n"
        "from edge_agent.pictures.process import shared_pictures\n"
        "facts = shared_pictures('inspect').facts(sys.stdin.buffer.read())\n"
        "print(facts[0], [name for name in ('PIL', 'numpy') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], input=_picture(), capture_output=True, check=True)
    assert done.stdout.strip() == b"32 []"
