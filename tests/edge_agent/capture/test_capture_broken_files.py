"""Packed files that end too early: every whole row before the break, whatever the batch size, then the reason."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard

from edge_agent.errors import SourceEndedError, SourceError
from edge_agent.sources.api import Source
from tests.fakes.sources import build, close_all

PACK: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "zst": zstandard.ZstdCompressor().compress}
ZEEK = "#separator \\x09\n#fields\tts\tuid\torig_bytes\n#types\ttime\tstring\tcount\n"


@pytest.fixture(autouse=True)
def _close_all() -> Iterator[None]:
    yield
    close_all()


def table(form: str, rows: int) -> bytes:
    """A table whose rows pack badly, so that a cut file still gives most of them."""
    cells = [(n, f"u{n * 2_654_435_761 % 2**32:x}{n * 40_503 % 65_536:x}") for n in range(rows)]
    if form == "csv":
        return b"ts,uid,orig_bytes\n" + b"".join(b'%d,"%s\nx",%d\n' % (n, uid.encode(), n) for n, uid in cells)
    if form == "jsonl":
        return b"".join(json.dumps({"ts": n, "uid": uid, "orig_bytes": n}).encode() + b"\n" for n, uid in cells)
    return ZEEK.encode() + b"".join(b"%d.0\t%s\t%d\n" % (n, uid.encode(), n) for n, uid in cells)


def whole_rows(form: str, text: bytes) -> int:
    """How many rows stand whole in the beginning of a table."""
    if form == "csv":
        return max(0, text.count(b'",') and text.rpartition(b"\n")[0].count(b'\nx",')) if text else 0
    lines = text.split(b"\n")[:-1]
    return sum(not line.startswith(b"#") for line in lines)


def take(source: Source, max_samples: int) -> tuple[list[object], bytes | None, str]:
    """All that comes, the last position, and the reason why no more does."""
    found: list[object] = []
    position = None
    for _ in range(100_000):
        try:
            batch = source.read(max_samples)
        except SourceEndedError:
            return found, position, ""
        except SourceError as error:
            return found, position, str(error)
        if batch is not None:
            found += batch.columns["orig_bytes"]
            position = batch.position
    raise AssertionError("it does not end")


@pytest.mark.parametrize("max_samples", [1, 97, 5000])
@pytest.mark.parametrize("form", ["csv", "jsonl", "zeek"])
@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("members", [1, 3])
def test_every_whole_row_before_the_break_comes_and_then_the_reason(
    tmp_path: Path, packing: str, form: str, max_samples: int, members: int
) -> None:
    text = table(form, 9_000)
    step = len(text) // members + 1
    pieces = [PACK[packing](text[at : at + step]) for at in range(0, len(text), step)]
    body = b"".join(pieces)
    cut = body[: len(body) - len(pieces[-1]) // 3]
    path = tmp_path / f"table.{form}.{packing}"
    path.write_bytes(cut)
    unpacked = _unpack(packing, [*pieces[:-1], pieces[-1][: len(pieces[-1]) - len(pieces[-1]) // 3]])
    expected = whole_rows(form, unpacked)
    assert 3_000 < expected < 9_000
    found, position, reason = take(build("replay", "network_flow", path=str(path)), max_samples)
    assert found == list(range(expected))
    assert "cut short" in reason
    again, _, reason = take(build("replay", "network_flow", position, path=str(path)), max_samples)
    assert (again, "cut short" in reason) == ([], True)
    path.write_bytes(body)  # the copy that was under way is whole
    rest, _, reason = take(build("replay", "network_flow", position, path=str(path)), max_samples)
    assert found + rest == list(range(9_000))
    assert reason == ""


def _unpack(packing: str, pieces: list[bytes]) -> bytes:
    if packing == "gz":
        return b"".join(zlib.decompressobj(31).decompress(piece) for piece in pieces)
    return b"".join(zstandard.ZstdDecompressor().decompressobj().decompress(piece) for piece in pieces)


def test_the_cut_table_that_was_found_in_the_field_gives_its_rows(shared_data: Path) -> None:
    path = shared_data / "odd/edge/r_gzcut.csv.gz"
    for max_samples in (1, 100, 5000):
        rows, reason = 0, ""
        source = build("replay", "vehicle_telemetry", path=str(path))
        while not reason:
            try:
                batch = source.read(max_samples)
                rows += 0 if batch is None else len(batch)
            except SourceError as error:
                reason = str(error)
        assert rows == 1_952
        assert "cut short" in reason


def test_a_file_of_which_nothing_can_be_unpacked_says_so(tmp_path: Path) -> None:
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(b"ts,uid\n1,a\n")[:8])
    with pytest.raises(SourceError, match="cut short"):
        build("replay", "network_flow", path=str(tmp_path / "x.csv.gz"))
