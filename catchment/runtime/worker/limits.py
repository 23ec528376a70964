"""The limits of a child process, and the frames of its messages: what parent and child have to agree on.

Limits are validated in the parent and applied in the child before it imports anything else. A frame is one byte of kind, four
of length, then the body.
"""

import contextlib
import ctypes
import os
import resource
import signal
import struct
from dataclasses import dataclass
from pathlib import Path

HEAD = struct.Struct("<cI")
MAX_FRAME_BYTES = (1 << 32) - 1
REQUEST, ANSWER, REFUSED, NOTE, READY, NO_MEMORY = b"q", b"a", b"e", b"n", b"r", b"m"
MAX_NOTE_BYTES = 256
MAX_REASON_CHARS = 500

MIB = 1024 * 1024
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_KILL_FIRST = "1000"


def encode_refusal(error: BaseException) -> bytes:
    """Class name and message of an exception, on one line each."""
    message = " ".join(str(error).split())[:MAX_REASON_CHARS]
    return f"{type(error).__name__}\n{message}".encode("utf-8", "replace")


def decode_refusal(body: bytes) -> tuple[str, str]:
    """Class name and message; the child may have sent anything."""
    kind, _, reason = body.decode("utf-8", "replace").partition("\n")
    return kind[:80], reason[:MAX_REASON_CHARS]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLimits:
    """Limits of one child; 0 means no limit for `memory_bytes`, `address_bytes` and `cpu_s`.

    Attributes:
        memory_bytes: private memory, mapped or allocated (RLIMIT_DATA). Files mapped read-only do not count.
        address_bytes: address space (RLIMIT_AS).
        cpu_s: processor seconds of one request (RLIMIT_CPU); the wall deadline is the caller's.
        file_bytes: largest file it may write (RLIMIT_FSIZE).
        open_files: open descriptors (RLIMIT_NOFILE).
        niceness: added to the parent's.
        start_timeout_s: how long imports and the factory may take.
        max_request_bytes: largest request.
        max_answer_bytes: largest answer.
    """

    memory_bytes: int = 0
    address_bytes: int = 0
    cpu_s: int = 0
    file_bytes: int = 0
    open_files: int = 256
    niceness: int = 5
    start_timeout_s: float = 30.0
    max_request_bytes: int = 256 * MIB
    max_answer_bytes: int = 16 * MIB

    def __post_init__(self) -> None:
        for name in ("memory_bytes", "address_bytes", "cpu_s", "file_bytes", "niceness"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} {getattr(self, name)} must not be negative")
        for name in ("open_files", "start_timeout_s", "max_request_bytes", "max_answer_bytes"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} {getattr(self, name)} must be positive")


def apply_limits(limits: WorkerLimits) -> None:
    """Limit the calling process for the rest of its life. A limit that the parent has already is never raised.

    Raises:
        OSError: the kernel refuses; the process must not go on.
    """
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, limits.file_bytes)
    _lower(resource.RLIMIT_NOFILE, limits.open_files)
    if limits.memory_bytes:
        _lower(resource.RLIMIT_DATA, limits.memory_bytes)
    if limits.address_bytes:
        _lower(resource.RLIMIT_AS, limits.address_bytes)
    # Courtesies, which a service manager's system call filter or a read-only /proc may deny; the limits above hold anyway.
    with contextlib.suppress(OSError):
        os.nice(limits.niceness)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_KILL_FIRST)


def end_with_parent(parent_pid: int) -> bool:
    """Have the kernel kill this process when its parent ends; False if the parent has ended already."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return os.getppid() == parent_pid


def allow_cpu(seconds: int) -> None:
    """Give the process that many more processor seconds from now on; SIGXCPU ends it after them."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    wanted = int(used.ru_utime + used.ru_stime) + seconds + 1
    resource.setrlimit(resource.RLIMIT_CPU, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _lower(kind: int, wanted: int) -> None:
    _soft, hard = resource.getrlimit(kind)
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(kind, (limit, limit))
