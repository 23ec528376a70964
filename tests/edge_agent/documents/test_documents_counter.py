"""The counter is on disk before an order is followed; rot, kills and a full disk bring no older order back."""

import os
import signal
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from edge_agent.documents import gate as counter_module
from edge_agent.documents import signature
from edge_agent.documents.gate import CounterFile, NewestDocument
from edge_agent.errors import UntrustedDocumentError
from schemas.signed_document import DocumentKind
from tests.fakes.director import FakeDirector, HandClock, OrderTaker

KEY = "ab" * 32
FILES = ("desired.counter", "desired.counter.copy")


def open_counter(folder: Path, *keys: str) -> CounterFile:
    return CounterFile(folder, DocumentKind.DESIRED, keys or (KEY,))


@pytest.mark.parametrize("rot", [b"", b"\0" * 90, None], ids=["empty", "zeros", "gone"])
@pytest.mark.parametrize("which", FILES)
def test_one_of_the_two_files_is_enough_and_restores_the_other(tmp_path: Path, which: str, rot: bytes | None) -> None:
    open_counter(tmp_path).note(NewestDocument(7, "a"))
    path = tmp_path / "documents" / which
    path.unlink() if rot is None else path.write_bytes(rot)
    assert open_counter(tmp_path).seen == NewestDocument(7, "a")
    assert len({(tmp_path / "documents" / name).read_bytes() for name in FILES}) == 1


@pytest.mark.parametrize("bit", [0, 3, 6])
def test_no_rotten_bit_makes_the_counter_higher_or_lower(tmp_path: Path, bit: int) -> None:
    open_counter(tmp_path).note(NewestDocument(7, "a"))
    path = tmp_path / "documents" / FILES[0]
    good = path.read_bytes()
    for place in range(0, len(good), 4):
        rotten = bytearray(good)
        rotten[place] ^= 1 << bit
        path.write_bytes(rotten)
        assert open_counter(tmp_path).seen == NewestDocument(7, "a")


def test_a_kill_between_the_two_files_keeps_the_higher_counter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_counter(tmp_path).note(NewestDocument(7, "a"))
    written: list[Path] = []

    def once(path: Path, body: bytes) -> None:
        if written:
            raise OSError(5, "killed here")
        written.append(path)
        path.write_bytes(body)

    with monkeypatch.context() as patch:
        patch.setattr(counter_module, "write_atomic", once)
        with pytest.raises(OSError, match="killed"):
            open_counter(tmp_path).note(NewestDocument(8, "b"))
    assert open_counter(tmp_path).seen == NewestDocument(8, "b")


def test_a_disk_that_refuses_lets_no_order_be_followed_until_it_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    director = FakeDirector()
    device = OrderTaker(tmp_path, director.public_key)
    assert device.take(director.order(5, 1)) == (1,)
    with monkeypatch.context() as patch:
        patch.setattr(counter_module, "write_atomic", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        assert device.take(director.order(6, 2)) is None
        assert "No space" in device.reason
    device.clock.sleep(1_000)
    assert device.look() == (2,)
    assert device.refused == 0


def test_what_was_noted_twice_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = open_counter(tmp_path)
    counter.note(NewestDocument(7, "a"))
    monkeypatch.setattr(counter_module, "write_atomic", lambda *_: pytest.fail("written again"))
    counter.note(NewestDocument(7, "a"))
    counter.note(NewestDocument(6, "b"))
    assert open_counter(tmp_path).seen == NewestDocument(7, "a")


def test_a_check_that_cannot_be_made_is_made_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    director = FakeDirector()
    device = OrderTaker(tmp_path, director.public_key)
    device.gate._check = signature.check_signatures
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/nowhere/python")
        assert device.take(director.order(5)) is None
        assert "could not be checked" in device.reason
    assert device.look() is None  # not at once
    device.clock.sleep(60)
    assert device.look() == (1,)
    assert device.refused == 0


def test_the_process_that_checks_knows_the_keys_and_takes_any_good_signature() -> None:
    director, other = FakeDirector(), FakeDirector()
    good = director.signature("text", "desired").signature
    signed = b"catchment signed document 1\ndesired\ntext"
    signature.check_signatures(signed, [(other.public_key, good), (director.public_key, good)])
    with pytest.raises(UntrustedDocumentError):
        signature.check_signatures(signed, [(other.public_key, good)])
    with pytest.raises(UntrustedDocumentError):
        signature.check_signatures(signed + b" ", [(director.public_key, good)])


def test_orders_come_from_one_thread_while_another_decides(tmp_path: Path) -> None:
    director = FakeDirector()
    device = OrderTaker(tmp_path, director.public_key)
    bodies = [director.order(counter, counter) for counter in range(1, 60)]
    feeder = threading.Thread(target=lambda: deque(map(device.inbox.hand_in, bodies)))
    feeder.start()
    got = []
    while feeder.is_alive() or device.inbox.is_due:
        if (models := device.inbox.take()) is not None:
            got.append(models.models[0].version)
    assert got == sorted(got)
    assert got[-1] == 59
    assert device.refused == 0


@pytest.mark.slow
def test_a_device_killed_at_any_moment_never_follows_an_older_order(tmp_path: Path) -> None:
    key = bytes(range(32))
    director = FakeDirector()
    director.key = Ed25519PrivateKey.from_private_bytes(key)
    director.public_key = director.key.public_key().public_bytes_raw().hex()
    script = Path(__file__).parents[2] / "fakes" / "order_loop.py"
    root = Path(__file__).parents[3]
    followed = 0
    for turn in range(8):
        command = [sys.executable, str(script), str(tmp_path), key.hex()]
        environment = {**os.environ, "PYTHONPATH": str(root)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
            assert process.stdout is not None
            for _ in range(3 + turn * 7):
                process.stdout.readline()
            os.kill(process.pid, signal.SIGKILL)
            lines = process.stdout.read().split()
        followed = max([followed, *map(int, lines[:-1])])
        device = OrderTaker(tmp_path, director.public_key)
        assert device.counter.seen.counter >= followed
        followed = device.counter.seen.counter
        assert device.take(director.order(followed - 1, 99)) is None
    assert followed > 8 * 3


class Device(RuleBasedStateMachine):
    """Orders old and new, restarts, rot of one file, clocks forward and back: what is in force is the newest ever followed."""

    @initialize()
    def begin(self) -> None:
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.director = FakeDirector()
        self.clock = HandClock()
        self.followed = 0
        self.restart()

    @rule()
    def restart(self) -> None:
        self.device = OrderTaker(Path(self.folder.name), self.director.public_key, clock=self.clock)

    @rule(counter=st.integers(1, 12), version=st.integers(1, 3))
    def order(self, counter: int, version: int) -> None:
        if self.device.take(self.director.order(counter, version)) is not None:
            assert counter >= self.followed
            self.followed = counter
        else:
            assert counter <= self.followed

    @rule(which=st.sampled_from(FILES), place=st.integers(0, 60))
    def rot(self, which: str, place: int) -> None:
        path = Path(self.folder.name) / "documents" / which
        if path.exists() and self.followed:
            body = bytearray(path.read_bytes())
            body[place % len(body)] ^= 0x10
            path.write_bytes(body)
        self.restart()

    @rule(seconds=st.integers(-(10**9), 10**9))
    def change_the_clock(self, seconds: int) -> None:
        self.clock.wall_ms = max(0, self.clock.wall_ms + seconds * 1000)

    @invariant()
    def the_counter_is_the_newest_that_was_followed(self) -> None:
        assert self.device.counter.seen.counter == self.followed

    def teardown(self) -> None:
        self.folder.cleanup()


TestDevice = Device.TestCase
TestDevice.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)
