"""Encryption at rest: nothing readable on the disk, nothing readable without the key, and the agent runs without the extra."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from catchment.runtime.clock import SystemClock
from edge_agent.errors import ConfigError, SpoolError
from edge_agent.spool.opening import OBJECTS_FOLDER
from edge_agent.spool.payload_files import SEALED_SUFFIX
from edge_agent.spool.records import Append, NewEnvelope
from edge_agent.spool.sealing import CHUNK_BYTES, Seal, read_seal, sealed_bytes
from edge_agent.spool.spool import Spool
from schemas.ids import StreamName
from schemas.receipts import Receipt

MIB = 1024 * 1024
ALPHA = StreamName("alpha")
SECRET = b"a face, a number plate"
KEY, OTHER = bytes(range(32)), bytes(range(1, 33))


def open_spool(folder: Path, key: bytes | None) -> Spool:
    seal = None if key is None else Seal(key)
    return Spool(folder, max_bytes=64 * MIB, linger_ms=0, clock=SystemClock(), seal=seal)


def put(spool: Spool, body: bytes) -> None:
    spool.append(Append(ALPHA, (NewEnvelope(1, body, "1.0.0"),))).result()


def drain(spool: Spool) -> list[bytes]:
    found = []
    while batch := spool.next_unsent(MIB):
        found += [envelope.body for envelope in batch]
    return found


def everything(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_nothing_that_was_captured_can_be_read_from_the_disk(tmp_path: Path) -> None:
    small, large, huge = SECRET * 5, SECRET * 10_000, SECRET * 60_000
    spool = open_spool(tmp_path / "s", KEY)
    put(spool, small)
    put(spool, large)
    ref = spool.put_object(huge)
    spool.append(Append(ALPHA, (NewEnvelope(1, b"row", "1.0.0", large=ref),))).result()
    assert SECRET[:10] not in everything(tmp_path / "s")
    spool.close()
    assert SECRET[:10] not in everything(tmp_path / "s")
    spool = open_spool(tmp_path / "s", KEY)
    assert drain(spool) == [small, large]
    assert spool.waiting_objects()[0].ref == ref
    assert b"".join(spool.read_object(ref.digest, at, 100_000) for at in range(0, len(huge), 100_000)) == huge
    assert all(entry.is_balanced for entry in spool.books())
    spool.close()


@pytest.mark.parametrize("size", [1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 5 * CHUNK_BYTES + 7])
def test_any_piece_of_a_sealed_payload_is_read_alone(tmp_path: Path, size: int) -> None:
    spool = open_spool(tmp_path / "s", KEY)
    payload = os.urandom(size)
    ref = spool.put_object(payload)
    file = tmp_path / "s" / OBJECTS_FOLDER / f"{ref.digest}{SEALED_SUFFIX}"
    assert file.stat().st_size == sealed_bytes(size)
    for at, length in ((0, size), (0, 1), (size - 1, 1), (size // 2, size), (max(0, size - 70_000), 70_000), (size, 10)):
        assert spool.read_object(ref.digest, at, length) == payload[at : at + length]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(OSError, match="seal is broken"):
        spool.read_object(ref.digest, size - 1, 1)
    spool.close()


@pytest.mark.parametrize("key", [OTHER, None])
def test_with_another_key_or_none_it_does_not_start_and_destroys_nothing(tmp_path: Path, key: bytes | None) -> None:
    spool = open_spool(tmp_path / "s", KEY)
    put(spool, SECRET)
    epoch = spool.epoch
    spool.close()
    with pytest.raises(ConfigError, match=r"spool\.key is"):
        open_spool(tmp_path / "s", key)
    spool = open_spool(tmp_path / "s", KEY)
    assert drain(spool) == [SECRET]
    spool.settle(Receipt(1, {ALPHA: {str(epoch): [(0, 1)]}})).result()
    spool.close()
    open_spool(tmp_path / "s", key).close()  # nothing of the old key is left: now it may change


def test_even_where_the_key_s_mark_is_lost_a_sealed_body_is_neither_sent_nor_given_up(tmp_path: Path) -> None:
    spool = open_spool(tmp_path / "s", KEY)
    put(spool, SECRET)
    spool.opened.db.execute("DELETE FROM meta WHERE name = 'key'")
    spool.close()
    for key in (OTHER, None):
        spool = open_spool(tmp_path / "s", key)
        with pytest.raises(SpoolError, match=r"spool\.key"):
            spool.next_unsent(MIB)
        assert spool.books()[0].dropped == {}
        spool.opened.db.execute("DELETE FROM meta WHERE name = 'key'")
        spool.close()


def test_what_was_captured_before_there_was_a_key_is_sent_too(tmp_path: Path) -> None:
    spool = open_spool(tmp_path / "s", None)
    put(spool, b"before")
    spool.close()
    spool = open_spool(tmp_path / "s", KEY)
    put(spool, b"after")
    assert drain(spool) == [b"before", b"after"]
    spool.close()


def test_a_body_that_somebody_changed_is_given_up_as_corrupt(tmp_path: Path) -> None:
    seal = Seal(KEY)
    spool = open_spool(tmp_path / "s", KEY)
    forged = seal.seal(SECRET, b"other bounds")
    spool._seal = None
    put(spool, forged)  # as it would lie there with a right checksum
    spool._seal = seal
    assert drain(spool) == []
    spool.settle(Receipt(0, {})).result()
    assert spool.books()[0].dropped == {"corrupt": 1}
    spool.close()


def test_a_key_comes_from_a_file_or_a_systemd_credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "raw").write_bytes(KEY)
    (tmp_path / "hex").write_text(KEY.hex() + "\n")
    (tmp_path / "short").write_text("abc")
    for name in ("raw", "hex"):
        seal = read_seal(tmp_path / name)
        assert seal is not None
        assert seal.key_id == Seal(KEY).key_id
    for name in ("short", "none"):
        with pytest.raises(ConfigError, match="openssl rand -hex 32"):
            read_seal(tmp_path / name)
    with pytest.raises(ConfigError, match="LoadCredential"):
        read_seal(tmp_path / "credential:hex")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert read_seal(Path("/etc/catchment/credential:hex")) is not None
    assert read_seal(None) is None


def test_without_the_extra_the_agent_runs_and_a_key_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(KEY)
    program = """
import sys
sys.modules["cryptography"] = None
from pathlib import Path
from catchment.runtime.clock import SystemClock
from edge_agent.errors import ConfigError
from edge_agent.spool.sealing import read_seal
from edge_agent.spool.spool import Spool
Spool(Path(sys.argv[1]) / "s", max_bytes=8 << 20, linger_ms=0, clock=SystemClock()).close()
try:
    read_seal(Path(sys.argv[1]) / "key")
except ConfigError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "catchment[encrypt]" in done.stdout
