"""Which failures of a runner no trying again will mend, and what does. No IO."""

from collections.abc import Iterator

# Words of an error, and what to do. The first that fits.
_REMEDIES: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("Unable to parse jar URL", "Unable to fetch remote job server jar", "Unable to access jarfile"),
        (
            "Beam's job server is not there: bring its jar and name it (-- --flink_job_server_jar=PATH, or"
            " --spark_job_server_jar=PATH), or start one and name that (--runner portable -- --job_endpoint=HOST:PORT)"
        ),
    ),
    (
        ("No module named",),
        "the workers' environment lacks a package: install this release of catchment, with the same apache-beam, where they run",
    ),
    (
        ("KeyError: 'beam:env:", "Unknown environment type"),
        "this job server does not know that environment of the workers: give another --environment_type (LOOPBACK, DOCKER, ...)",
    ),
    (("No such file or directory: 'java'", "JAVA_HOME"), "Beam's job server needs Java: install a Java runtime"),
    (("No such file or directory: 'docker'",), "--environment_type=DOCKER needs the docker command: install it, or give another"),
    (
        ("Version mismatch", "incompatible SDK version"),
        "runner and workers have different releases of apache-beam: install the same one on both",
    ),
)


def remedy(error: BaseException | str) -> str:
    """What to do about a failure that would come again each time; empty for one that may pass."""
    texts = [error] if isinstance(error, str) else list(_texts(error))
    for words, hint in _REMEDIES:
        if any(word in text for text in texts for word in words):
            return hint
    return ""


def _texts(error: BaseException) -> Iterator[str]:
    """What an error and those it came from say, each with its class."""
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        yield f"{type(at).__name__}: {at}"
        at = at.__cause__ or at.__context__


def last_line(text: str) -> str:
    """The line of an error's text that says what happened: the last one that is not empty."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("WARNING:")]
    return lines[-1][:500] if lines else ""
