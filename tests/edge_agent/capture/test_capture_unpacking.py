"""Packed files: every byte before a break is given, and the break is named."""

import bz2
import gzip
import lzma
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from edge_agent.sources.files.unpacking import open_unpacked

TEXT = b"".join(b"%d,%d,row\n" % (n, n * 7919 % 10_007) for n in range(40_000))
PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "zstd": zstandard.ZstdCompressor(write_checksum=True).compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}


def unpack(path: Path, body: bytes) -> tuple[bytes, str]:
    path.write_bytes(body)
    with open_unpacked(path) as file:
        found = file.read()
        return found, file.broken


@pytest.mark.parametrize("kind", PACK)
def test_a_packed_file_of_one_or_several_members_is_read_whole(tmp_path: Path, kind: str) -> None:
    pack = PACK[kind]
    assert unpack(tmp_path / "x", pack(TEXT)) == (TEXT, "")
    assert unpack(tmp_path / "x", pack(TEXT[:1000]) + pack(b"") + pack(TEXT[1000:])) == (TEXT, "")
    assert unpack(tmp_path / "x", pack(TEXT) + bytes(200_000)) == (TEXT, "")
    found, broken = unpack(tmp_path / "x", pack(TEXT) + b"something else")
    assert found == TEXT
    assert "no " + kind in broken


@pytest.mark.parametrize("magic", [0x50, 0x5E])
def test_frames_without_content_that_zstd_writers_put_between_others_are_skipped(tmp_path: Path, magic: int) -> None:
    pack, skippable = PACK["zstd"], bytes((magic, 0x2A, 0x4D, 0x18, 4, 0, 0, 0)) + b"abcd"
    body = skippable + pack(TEXT[:1000]) + skippable + skippable + pack(TEXT[1000:]) + skippable
    assert unpack(tmp_path / "x", body) == (TEXT, "")


@pytest.mark.parametrize("kind", PACK)
def test_a_file_cut_anywhere_gives_what_stands_before_the_cut_and_says_so(tmp_path: Path, kind: str) -> None:
    body = PACK[kind](TEXT[:150_000]) + PACK[kind](TEXT[150_000:])
    dice = random.Random(5)
    longest = 0
    for cut in [*(dice.randrange(12, len(body)) for _ in range(12)), len(body) - 1, len(body) - 5]:
        found, broken = unpack(tmp_path / "x", body[:cut])
        assert TEXT.startswith(found)
        assert broken or cut == len(PACK[kind](TEXT[:150_000]))
        longest = max(longest, len(found))
    assert longest == len(TEXT)


def test_gzip_gives_what_gzip_itself_could_unpack(tmp_path: Path) -> None:
    body = gzip.compress(TEXT)
    for cut in (len(body) // 3, len(body) // 2, len(body) - 20):
        found, _ = unpack(tmp_path / "x", body[:cut])
        assert len(found) > len(TEXT) * cut / len(body) * 0.8


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_what_stands_before_damage_is_given_once(tmp_path: Path, kind: str) -> None:
    body = bytearray(PACK[kind](TEXT[:200_000]) + PACK[kind](TEXT[200_000:]))
    for at, least in ((len(body) - 30_000, 200_000), (len(body) - 3, len(TEXT) - 140_000)):
        damaged = bytearray(body)
        damaged[at : at + 2] = bytes(byte ^ 0xFF for byte in damaged[at : at + 2])
        found, broken = unpack(tmp_path / "x", bytes(damaged))
        assert broken
        assert found[:least] == TEXT[:least]  # gzip notices some damage at its checksum alone


@pytest.mark.parametrize("kind", ["", *PACK])
def test_seeking_reaches_any_place(tmp_path: Path, kind: str) -> None:
    (tmp_path / "x").write_bytes(PACK[kind](TEXT) if kind else TEXT)
    with open_unpacked(tmp_path / "x") as file:
        assert file.packing == kind
        for at in (300_000, 10, len(TEXT) - 3, 0):
            assert file.seek(at) == at
            assert file.read(20) == TEXT[at : at + 20]
        if kind:
            assert file.seek(len(TEXT) + 50) == len(TEXT)
