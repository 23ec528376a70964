"""Render example samples as one page: small pictures with the tags they would get, as self-contained HTML or as a PNG.

Pictures are decoded in a limited process: a picture that harms its decoder is only missing on the page.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pyvips
import structlog

from catchment.runtime.atomic_files import write_atomic
from catchment.runtime.plain import html_text
from catchment.runtime.worker.limits import MIB, WorkerLimits
from catchment.runtime.worker.outcome import Answered, Refused
from catchment.runtime.worker.process import WorkerProcess, WorkerSpec
from pipelines.errors import CorruptLakeError, RefusedError
from pipelines.lake.lake import Lake
from pipelines.policy.preview import ExampleRow
from pipelines.policy.thumbnail_child import AS_JPEG, AS_TILE, SIDE_PX

_TARGET = "pipelines.policy.thumbnail_child:open_thumbnailer"
_PICTURE_TIMEOUT_S = 20.0
_MAX_ENDED = 5
_LIMITS = WorkerLimits(memory_bytes=1024 * MIB, cpu_s=20, max_request_bytes=256 * MIB, max_answer_bytes=4 * MIB)

log = structlog.get_logger(__name__)


MAX_BYTES = 256 * 1024 * 1024
_STYLE = """body{font:14px system-ui,sans-serif;margin:2rem;background:#fff;color:#222}
main{display:grid;grid-template-columns:repeat(auto-fill,minmax(240px,1fr));gap:1rem}
figure{margin:0;border:1px solid #ccc;border-radius:6px;padding:.5rem}img{max-width:100%;display:block;margin-bottom:.5rem}
b{background:#e8eefc;border-radius:4px;padding:0 .4em;margin-right:.3em}dl{display:grid;grid-template-columns:auto 1fr;gap:0 .6em;
margin:.4rem 0 0;font-size:12px}dt{color:#666}dd{margin:0;overflow-wrap:anywhere}
section{display:flex;flex-wrap:wrap;gap:1rem;margin-bottom:1rem}"""


class Thumbnails:
    """Makes thumbnails of one form in a process that is started when needed, and again when a picture ended it.

    Args:
        form: `AS_JPEG` or `AS_TILE`.
        timeout_s: how long one picture may take.
    """

    def __init__(self, form: bytes, timeout_s: float = _PICTURE_TIMEOUT_S) -> None:
        self._form = form
        self._timeout_s = timeout_s
        self._ended = 0
        self._worker = WorkerProcess(WorkerSpec(target=_TARGET, options=form, limits=_LIMITS))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.close()

    def make(self, body: bytes) -> bytes | None:
        """The small picture; None for what is no picture, or one that cannot be decoded within the limits."""
        if self._ended >= _MAX_ENDED:
            return None
        outcome = self._worker.start()
        if isinstance(outcome, Answered):
            outcome = self._worker.request(body, self._timeout_s) or outcome
        if isinstance(outcome, Answered):
            return outcome.body if self._is_sound(outcome.body) else None
        if not isinstance(outcome, Refused):
            self._ended += 1
            log.warning("picture_not_shown", reason=str(outcome), ended=self._ended, given_up=self._ended >= _MAX_ENDED)
        return None

    def _is_sound(self, answer: bytes) -> bool:
        return len(answer) == SIDE_PX * SIDE_PX * 3 if self._form == AS_TILE else answer.startswith(b"\xff\xd8\xff")


@dataclass(frozen=True, slots=True)
class Sheet:
    """A title and the examples, whose pictures are read from the lake; `above` is HTML of our own to stand before them."""

    lake: Lake
    title: str
    examples: Sequence[ExampleRow]
    above: str = ""

    def write(self, path: Path) -> int:
        """Write the page; its suffix says which form. The number of pictures on it.

        Raises:
            RefusedError: another suffix than .html and .png.
            CorruptLakeError: a payload is gone.
        """
        if path.suffix not in (".html", ".png"):
            raise RefusedError(f"{path}: a contact sheet is .html or .png")
        with Thumbnails(AS_JPEG if path.suffix == ".html" else AS_TILE) as thumbnails:
            pictures = [self._picture(example.row, thumbnails) for example in self.examples]
        body = self._html(pictures) if path.suffix == ".html" else self._png(pictures)
        write_atomic(path, body, mode=0o644)
        return sum(picture is not None for picture in pictures)

    def _picture(self, row: dict[str, Any], thumbnails: Thumbnails) -> bytes | None:
        """The payload as a small picture; None if it has none or is no picture: its columns are shown without one."""
        shard, length = row.get("payload_shard"), row.get("payload_length")
        if shard is None or not length or length > MAX_BYTES:
            return None
        sample = f"sample {row.get('device')}/{row.get('epoch')}/{row.get('seq')}"
        body = self.lake.view().payload(shard, row["payload_offset"] or 0, length, row.get("payload_row") or 0, sample)
        return thumbnails.make(body)

    def _html(self, pictures: Sequence[bytes | None]) -> bytes:
        figures = []
        for example, picture in zip(self.examples, pictures, strict=True):
            image = ""
            if picture is not None:
                encoded = base64.b64encode(picture).decode()
                image = f'<img alt="" src="data:image/jpeg;base64,{encoded}">'
            tags = "".join(f"<b>{html_text(tag)}</b>" for tag in example.tags)
            facts = "".join(
                f"<dt>{html_text(name)}</dt><dd>{html_text(str(value)[:200])}</dd>"
                for name, value in example.row.items()
                if value is not None and not name.startswith("payload_")
            )
            figures.append(f"<figure>{image}{tags}<dl>{facts}</dl></figure>")
        title = html_text(self.title)
        page = f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>"
        return f"{page}<h1>{title}</h1>{self.above}<main>{''.join(figures)}</main></html>\n".encode()

    def _png(self, pictures: Sequence[bytes | None]) -> bytes:
        shown = [picture for picture in pictures if picture is not None]
        if not shown:
            raise RefusedError("no example has a picture; write an .html sheet instead")
        tiles = [
            pyvips.Image.new_from_memory(picture, SIDE_PX, SIDE_PX, 3, "uchar").copy(interpretation="srgb") for picture in shown
        ]
        try:
            body: bytes = pyvips.Image.arrayjoin(tiles, across=min(5, len(tiles)), shim=8, background=255).pngsave_buffer()
        except pyvips.Error as error:
            raise CorruptLakeError(f"the pictures of the examples cannot be put together ({error})") from error
        return body
