import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.demo.processes import ProcessGroup, ProgramFailedError

# A program that has a child of its own, which has made itself a session (so no group signal reaches it).
FAMILY = """
import subprocess, sys, time, pathlib, os
folder = pathlib.Path(sys.argv[1])
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], start_new_session=True)
(folder / "tmp").write_text(f"{os.getpid()} {child.pid}")
(folder / "tmp").rename(folder / "pids")
time.sleep(300)
"""


def wait_for(condition: Callable[[], object], seconds: float = 20.0) -> None:
    for _ in range(int(seconds / 0.05)):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("it did not happen in time")


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def family_of(folder: Path) -> list[int]:
    wait_for((folder / "pids").exists)
    return [int(text) for text in (folder / "pids").read_text().split()]


def test_leaving_the_group_ends_a_program_and_its_children(tmp_path: Path) -> None:
    with ProcessGroup(tmp_path / "logs", grace_s=0.5) as group:
        group.start("family", [sys.executable, "-c", FAMILY, str(tmp_path)])
        family = family_of(tmp_path)
        assert all(is_alive(pid) for pid in family)
    assert not any(is_alive(pid) for pid in family)


def test_a_program_that_ignores_sigterm_is_killed_after_its_grace(tmp_path: Path) -> None:
    stubborn = FAMILY.replace(
        "import subprocess", "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\nimport subprocess", 1
    )
    with ProcessGroup(tmp_path / "logs", grace_s=0.3) as group:
        group.start("stubborn", [sys.executable, "-c", stubborn, str(tmp_path)])
        family = family_of(tmp_path)
    assert not any(is_alive(pid) for pid in family)


def test_a_killed_demo_leaves_nothing_behind(tmp_path: Path) -> None:
    demo = textwrap.dedent(f"""
        import sys, time
        from pathlib import Path
        from pipelines.demo.processes import ProcessGroup
        with ProcessGroup(Path({str(tmp_path)!r}) / "logs") as group:
            group.start("family", [sys.executable, "-c", {FAMILY!r}, {str(tmp_path)!r}])
            time.sleep(300)
    """)
    process = subprocess.Popen([sys.executable, "-c", demo])
    family = family_of(tmp_path)
    process.kill()
    process.wait()
    wait_for(lambda: not any(is_alive(pid) for pid in family))


def test_a_killed_leash_takes_its_program_along(tmp_path: Path) -> None:
    with ProcessGroup(tmp_path / "logs", grace_s=0.3) as group:
        program = group.start("sleeper", ["sleep", "300"])
        children = Path(f"/proc/{program.subreaper.pid}/task/{program.subreaper.pid}/children")
        wait_for(lambda: children.read_text().split())
        (sleeper,) = map(int, children.read_text().split())
        os.kill(program.subreaper.pid, signal.SIGKILL)
        wait_for(lambda: not is_alive(sleeper))


def test_a_program_that_fails_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    with ProcessGroup(tmp_path / "logs") as group:
        program = group.start("broken", [sys.executable, "-c", "raise SystemExit('the disk is made of cheese')"])
        assert program.wait(20) == 1
        with pytest.raises(ProgramFailedError, match=r"broken ended with status 1(.|\n)*made of cheese"):
            group.check()


def test_a_program_that_does_not_exist_says_so(tmp_path: Path) -> None:
    with ProcessGroup(tmp_path / "logs") as group:
        program = group.start("absent", ["/nowhere/at/all"])
        assert program.wait(20) == 127
        assert "cannot be started" in program.tail()
