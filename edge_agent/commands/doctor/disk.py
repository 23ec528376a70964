"""The disk under the state folder: may it be written, does it keep what was synced, is there room for the quota?"""

import os
from collections.abc import Iterator
from pathlib import Path

from catchment.runtime.atomic_files import write_atomic
from edge_agent.commands.doctor.findings import Finding, failed, good, skipped, warning
from edge_agent.config import AgentConfig

WHAT = "disk"
_PROBE = ".doctor.probe"
_MOUNTS = Path("/proc/self/mountinfo")
# Their fsync keeps nothing over a power cut.
_FORGETFUL = frozenset({"tmpfs", "ramfs", "overlay"})
_MIB = 1024 * 1024


def examine_disk(config: AgentConfig) -> Iterator[Finding]:
    """Look at the folder that holds spool, rules and models."""
    folder = config.state_dir
    if not folder.exists():
        # Not made here: it must belong to the agent's user, and this may be run by another.
        yield skipped(WHAT, f"{folder} is not there yet; the agent makes it at its first start")
        return
    try:
        write_atomic(folder / _PROBE, b"x" * 4096)
        (folder / _PROBE).unlink()
    except OSError as error:
        yield failed(WHAT, f"{folder} cannot be written: {error.strerror}", _write_fix(error, folder))
        return
    yield good(WHAT, f"{folder} can be written and synced")
    yield _room(config, folder)
    kind = filesystem_of(folder.resolve(), _MOUNTS.read_text()) if _MOUNTS.exists() else ""
    if kind in _FORGETFUL:
        yield warning(WHAT, f"{folder} is on {kind}: a power cut takes all that is not settled", "move state_dir to a real disk")


def _room(config: AgentConfig, folder: Path) -> Finding:
    about = os.statvfs(folder)
    free, whole = about.f_bavail * about.f_frsize, about.f_blocks * about.f_frsize
    used = sum(path.stat().st_size for path in config.spool_dir.rglob("*") if path.is_file())
    told = f"{free // _MIB} MiB free; the spool holds {used // _MIB} of {config.spool.max_bytes // _MIB} MiB"
    if about.f_files and not about.f_favail:
        return failed(WHAT, "no inode is free", f"delete small files on the file system of {folder}")
    if used + free >= config.spool.max_bytes:
        return good(WHAT, told)
    if config.spool.max_bytes > whole:
        return failed(
            WHAT, f"{told}; the whole disk has {whole // _MIB} MiB", f"lower [spool] max_bytes to {(used + free) * 9 // 10}"
        )
    fix = f"free some disk, or lower [spool] max_bytes to {(used + free) * 9 // 10}"
    return warning(WHAT, f"{told}: the disk is full before the quota is, and then others lack room, too", fix)


def filesystem_of(folder: Path, mounts: str) -> str:
    """The kind of file system a folder is on, given the text of /proc/self/mountinfo; empty where it does not say."""
    best, found = -1, ""
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        words = left.split()
        point = words[4].replace("\\040", " ") if len(words) > 4 else ""
        if point and folder.is_relative_to(point) and len(point) >= best:
            best, found = len(point), right.partition(" ")[0]
    return found


def _write_fix(error: OSError, folder: Path) -> str:
    if isinstance(error, PermissionError):
        return f"run this as the agent's user, or give that user the folder: chown -R USER {folder}"
    if error.errno in (28, 122):  # ENOSPC, EDQUOT
        return "free some disk; the agent itself goes on draining meanwhile"
    if error.errno == 30:  # EROFS
        return "the file system is mounted read-only, perhaps after an error: look at dmesg, run fsck"
    return "look at dmesg: the disk itself may be failing"
