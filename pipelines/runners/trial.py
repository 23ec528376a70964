"""Does a runner with workers elsewhere work at all? Found out with one tiny graph in a process of its own, before the first run.

A job service waits for workers for minutes, within calls that nothing interrupts; whether they can ever come does not change
from run to run. The graph's one step comes from this package, so a worker that can do it has Beam and this release.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from pipelines.errors import ConfigError, RetryLaterError
from pipelines.runners.engine import JOB_ENDPOINT, Engine, RunnerKind
from pipelines.runners.failure import last_line, remedy
from pipelines.stopping import end_descendants

WITHIN_S = 60.0
# Dataflow begins machines for each job, which takes minutes and costs money.
TRIED = frozenset({RunnerKind.PORTABLE, RunnerKind.FLINK, RunnerKind.SPARK})
_LAST_BYTES = 20_000
_ANSWER_S = 5.0
# Imported, not run as a file: the workers must find its step under the same name.
_PROGRAM = "from pipelines.runners.trial_graph import main; main()"
_ROOT = Path(__file__).resolve().parents[2]


def demand_workers(engine: Engine, within_s: float = WITHIN_S) -> None:
    """Run the tiny graph.

    Args:
        engine: where.
        within_s: how long it may take; 0: it is not tried.

    Raises:
        ConfigError: it cannot work as it is configured; the message says what would.
        RetryLaterError: the job server does not answer.
    """
    if engine.kind not in TRIED or not within_s:
        return
    _demand_job_server(engine)
    with tempfile.TemporaryFile() as output:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])}
        command = [sys.executable, "-c", _PROGRAM, engine.runner, json.dumps(engine.options)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment)
        try:
            code: int | None = process.wait(within_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end_descendants(process.pid)
            process.kill()
            process.wait()
        size = output.seek(0, os.SEEK_END)
        output.seek(max(0, size - _LAST_BYTES))
        text = output.read().decode(errors="replace")
    if code != 0:
        raise _failure(engine, text, within_s if code is None else None)


def _demand_job_server(engine: Engine) -> None:
    """Connect to the job server that is named, which Beam would wait for a minute."""
    host, colon, port = engine.option(JOB_ENDPOINT).rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_S).close()
    except OSError as error:
        raise RetryLaterError(f"runner {engine.runner}: job server {host}:{port}: {error}; is it running?") from error


def _failure(engine: Engine, text: str, waited_s: float | None) -> ConfigError | RetryLaterError:
    hint = remedy(text)
    if hint:
        return ConfigError(f"runner {engine.runner}: {hint}. It said: {last_line(text)}")
    if waited_s is not None:
        return ConfigError(
            f"runner {engine.runner}: no worker did a tiny test within {waited_s:g} s: where the workers run"
            " (--environment_type, --environment_config) install this release of catchment with the same apache-beam;"
            f" if the cluster is only slow, raise run.worker_test_s. It said: {last_line(text) or 'nothing'}"
        )
    return RetryLaterError(f"runner {engine.runner}: a tiny test failed: {last_line(text)}; is the job server running?")
