"""Two hosts with a network stack of their own each (network namespaces), and a wire between them that delays and loses packets.

The wire is a thread between two TUN devices, so it needs no traffic control in the kernel, and loses the same packets by the
same seed. All of it is gone when the processes that hold the namespaces are.
"""

import contextlib
import ctypes
import fcntl
import heapq
import os
import random
import select
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

_CLONE_NEWNET = 0x4000_0000
_TUNSETIFF = 0x4004_54CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_MTU_BYTES = 1_500
_LIBC = ctypes.CDLL(None, use_errno=True)


def why_not() -> str:
    """Why no hosts can be made here; empty if they can."""
    if os.geteuid() != 0:
        return "needs root: network namespaces and TUN devices"
    missing = [tool for tool in ("ip", "unshare", "nsenter", "mount") if shutil.which(tool) is None]
    if missing:
        return f"no {missing[0]} here: apt-get install -y --no-install-recommends iproute2 util-linux mount"
    if not Path("/dev/net/tun").exists():
        return "no /dev/net/tun here"
    tried = subprocess.run(["unshare", "--net", "ip", "link", "set", "lo", "up"], capture_output=True, text=True, check=False)
    return f"no network namespace can be made here: {tried.stderr.strip()}" if tried.returncode else ""


class Host:
    """A network stack with one wire; `address` can be reached over it."""

    def __init__(self, folder: Path, name: str, address: str) -> None:
        self.hosts_file = folder / f"{name}.hosts"
        self.hosts_file.write_text("127.0.0.1 localhost\n")
        self._holder = subprocess.Popen(["unshare", "--net", "sleep", "600"], stdin=subprocess.DEVNULL)
        self._place = Path(f"/proc/{self._holder.pid}/ns/net")
        ours = Path("/proc/self/ns/net").readlink()
        while self._place.readlink() == ours:
            time.sleep(0.005)
        with self.entered():
            self.wire = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(self.wire, _TUNSETIFF, struct.pack("16sH22x", b"wire", _IFF_TUN | _IFF_NO_PI))
        for command in (f"address add {address}/24 dev wire", "link set lo up", f"link set wire mtu {_MTU_BYTES} up"):
            self.ip(command)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Sockets that this thread, and threads that it starts, open meanwhile are this host's."""
        with Path("/proc/thread-self/ns/net").open("rb") as before, self._place.open("rb") as inside:
            _enter(inside.fileno())
            try:
                yield
            finally:
                _enter(before.fileno())

    def ip(self, command: str) -> None:
        """An `ip` command on this host."""
        subprocess.run([*self._enter_command, "ip", *command.split()], check=True)

    def command(self, *words: str) -> list[str]:
        """The command that runs `words` on this host, with the host's own names of hosts."""
        mounted = 'mount --bind "$1" /etc/hosts && shift && exec "$@"'
        return [*self._enter_command, "unshare", "--mount", "sh", "-c", mounted, "sh", str(self.hosts_file), *words]

    def close(self) -> None:
        """The host is gone, and its end of the wire."""
        os.close(self.wire)
        self._holder.kill()
        self._holder.wait()

    @property
    def _enter_command(self) -> list[str]:
        return ["nsenter", f"--net={self._place}"]


class Wire:
    """Carries packets between two hosts, each `delay_s` later, and loses a share of them; cut, it loses all, and says nothing."""

    def __init__(self, near: Host, far: Host, *, delay_s: float, loss: float, seed: int = 1) -> None:
        self.is_cut = False
        self.carried = 0
        self.lost = 0
        self._ends = {near.wire: far.wire, far.wire: near.wire}
        self._delay_s = delay_s
        self._loss = loss
        self._chance = random.Random(seed)
        self._late: list[tuple[float, int, int, bytes]] = []
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Carry nothing more."""
        self._is_closed = True
        self._thread.join(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        count = 0
        while not self._is_closed:
            wait_s = min(0.1, max(0.0, self._late[0][0] - time.monotonic())) if self._late else 0.1
            ready, _, _ = select.select(list(self._ends), [], [], wait_s)
            for end in ready:
                count += 1
                self._take(end, count)
            while self._late and self._late[0][0] <= time.monotonic():
                _, _, end, packet = heapq.heappop(self._late)
                with contextlib.suppress(OSError):  # that end is down: the packet is lost, as on a wire
                    os.write(end, packet)

    def _take(self, end: int, count: int) -> None:
        try:
            packet = os.read(end, 65_536)
        except OSError:
            # An interface that is down reads as an error.
            time.sleep(0.01)
            return
        if self.is_cut or self._chance.random() < self._loss:
            self.lost += 1
            return
        self.carried += 1
        heapq.heappush(self._late, (time.monotonic() + self._delay_s, count, self._ends[end], packet))


def _enter(descriptor: int) -> None:
    if _LIBC.setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
