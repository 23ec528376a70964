"""A machine that systemd has booted: systemd-nspawn on a prepared root, which stays as it is; what is written is forgotten."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BOOT_TIMEOUT_S = 60.0
ROOT_VARIABLE = "CATCHMENT_SYSTEMD_ROOT"


def why_not() -> str:
    """Why no machine can be booted here; empty if one can."""
    root = os.environ.get(ROOT_VARIABLE, "")
    if not root:
        return f"needs a prepared root: make systemd-units, or set {ROOT_VARIABLE} to one"
    if os.geteuid() != 0:
        return "needs root: systemd-nspawn makes namespaces and mounts"
    if shutil.which("systemd-nspawn") is None:
        return "no systemd-nspawn here: apt-get install -y --no-install-recommends systemd-container"
    if not (Path(root) / "lib/systemd/systemd").exists():
        return f"no systemd in {root}"
    return ""


class BootedMachine:
    """Commands run in it as an administrator would type them."""

    def __init__(self, leader: int, log: Path) -> None:
        self._leader = leader
        self._log = log

    def try_run(self, *command: str, stdin: str = "", timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a command, whatever comes of it."""
        environment = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"]
        entered = ["nsenter", "--target", str(self._leader), "--all", *environment, *command]
        return subprocess.run(entered, input=stdin, capture_output=True, text=True, check=False, timeout=timeout_s)

    def run(self, *command: str, stdin: str = "", timeout_s: float = 60.0) -> str:
        """Run a command that must succeed; what it printed."""
        done = self.try_run(*command, stdin=stdin, timeout_s=timeout_s)
        assert done.returncode == 0, f"{command} ended with {done.returncode}\n{done.stdout}{done.stderr}{self.journal()}"
        return done.stdout

    def write(self, path: str, text: str, mode: str = "0644") -> None:
        """Put a file there."""
        self.run("install", "-D", "-m", mode, "/dev/stdin", path, stdin=text)

    def shows(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).strip()

    def journal(self, *arguments: str) -> str:
        """The newest lines that the units wrote."""
        return self.try_run("journalctl", "--no-pager", "-o", "cat", "-n", "400", *arguments).stdout

    def is_up(self) -> bool:
        """Has systemd started all that it was asked to?"""
        return self.try_run("systemctl", "is-system-running").stdout.strip() in ("running", "degraded")


@contextmanager
def booted(root: Path, shown: dict[Path, str], log: Path) -> Iterator[BootedMachine]:
    """Boot it, with folders of this machine shown read-only at paths in it. Its network is a loopback and nothing else."""
    command = ["systemd-nspawn", f"--directory={root}", "--boot", "--volatile=overlay", "--register=no", "--private-network"]
    command += ["--console=pipe", "--link-journal=no", f"--machine=catchment-{os.getpid()}"]
    command += ["--capability=CAP_BPF,CAP_NET_ADMIN,CAP_PERFMON", "--system-call-filter=bpf"]
    command += [f"--bind-ro={ours}:{theirs}" for ours, theirs in shown.items()]
    if not Path("/run/systemd/system").is_dir():
        command.append("--keep-unit")
    # With one hierarchy of control groups the rules for addresses and devices hold in it, too.
    environment = {**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
    with log.open("wb") as log_file:
        nspawn = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log_file, stderr=log_file, env=environment)
    try:
        machine = _wait_until_up(nspawn, log)
        yield machine
    finally:
        nspawn.send_signal(signal.SIGTERM)
        try:
            nspawn.wait(30)
        except subprocess.TimeoutExpired:
            nspawn.kill()
            nspawn.wait()


def _wait_until_up(nspawn: subprocess.Popen[bytes], log: Path) -> BootedMachine:
    deadline_s = time.monotonic() + BOOT_TIMEOUT_S
    children = Path(f"/proc/{nspawn.pid}/task/{nspawn.pid}/children")
    while time.monotonic() < deadline_s:
        assert nspawn.poll() is None, log.read_text(errors="replace")
        for child in children.read_text().split():
            machine = BootedMachine(int(child), log)
            if machine.is_up():
                return machine
        time.sleep(0.1)
    raise AssertionError(f"it did not boot\n{log.read_text(errors='replace')}")
