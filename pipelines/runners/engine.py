"""Choose the Beam runner by the name an operator gives, and explain failures that no retry will fix. No IO, no import of Beam."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from pipelines.errors import ConfigError

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
    (
        ("Unable to fetch remote prism binary",),
        "Prism is not there: install it (docs/scale.md) and name it (-- --prism_location=PATH)",
    ),
    (("No such file or directory: 'java'", "JAVA_HOME"), "Beam's job server needs Java: install a Java runtime"),
    (("No such file or directory: 'docker'",), "--environment_type=DOCKER needs the docker command: install it, or give another"),
    (
        ("Version mismatch", "incompatible SDK version"),
        "runner and workers have different releases of apache-beam: install the same one on both",
    ),
)


class RunnerKind(StrEnum):
    """The runners a graph may be given to."""

    DIRECT = "direct"
    DASK = "dask"
    PORTABLE = "portable"
    PRISM = "prism"
    FLINK = "flink"
    SPARK = "spark"
    DATAFLOW = "dataflow"


# Not "DirectRunner": that one tries to download another runner first, and which one runs would depend on the network.
BEAM_NAMES = {
    RunnerKind.DIRECT: "FnApiRunner",
    RunnerKind.DASK: "apache_beam.runners.dask.dask_runner.DaskRunner",
    RunnerKind.PORTABLE: "PortableRunner",
    RunnerKind.PRISM: "apache_beam.runners.portability.prism_runner.PrismRunner",
    RunnerKind.FLINK: "FlinkRunner",
    RunnerKind.SPARK: "SparkRunner",
    RunnerKind.DATAFLOW: "DataflowRunner",
}
_KINDS = {**{kind.value: kind for kind in RunnerKind}, **{name.rsplit(".", 1)[-1]: kind for kind, name in BEAM_NAMES.items()}}

ADDRESS_OPTIONS = ("--dask_client_address", "--dask_scheduler_file")
_PARTITION_OPTIONS = ("--dask_npartitions", "--dask_partition_size")
JOB_ENDPOINT = "--job_endpoint"
PRISM_LOCATION = "--prism_location"


@dataclass(frozen=True, slots=True)
class Engine:
    """The runner of graphs.

    Args:
        runner: direct, dask, portable, prism, flink, spark or dataflow; Beam's own name of one of these will do.
        options: Beam's own options, as on a command line.
        workers: processes of a local cluster kept open over runs; only with dask, and instead of a scheduler's address.

    Raises:
        ConfigError: no such runner, or options that contradict each other or lack what the runner needs.
    """

    runner: str = RunnerKind.DIRECT.value
    options: tuple[str, ...] = ()
    workers: int = 0

    def __post_init__(self) -> None:
        if self.runner not in _KINDS:
            raise ConfigError(f"runner {self.runner!r}: give one of {', '.join(kind.value for kind in RunnerKind)}")
        if self.workers < 0:
            raise ConfigError(f"workers {self.workers}: give 1 or more, or leave it out")
        if self.workers and self.kind is not RunnerKind.DASK:
            raise ConfigError(f"workers with runner {self.runner}: only dask keeps local workers; give --runner dask")
        if self.has_option("--streaming"):
            raise ConfigError("--streaming: a run is bounded; a streaming job would wait for an end that never comes")
        if self.has_option("--runner"):
            raise ConfigError("--runner stands before the --, not behind it")

    @property
    def kind(self) -> RunnerKind:
        """The runner, whichever of its names was given."""
        return _KINDS[self.runner]

    @property
    def beam_name(self) -> str:
        """Beam's name of it."""
        return BEAM_NAMES[self.kind]

    def has_option(self, *names: str) -> bool:
        """Whether one of these options is given, as `--name value` or `--name=value`."""
        return any(option.split("=", 1)[0] in names for option in self.options)

    def option(self, name: str) -> str:
        """The value of an option; empty if it is not given."""
        for place, option in enumerate(self.options):
            given, is_joined, value = option.partition("=")
            if given == name:
                return value if is_joined else "".join(self.options[place + 1 : place + 2])
        return ""

    def beam_options(self) -> list[str]:
        """All options for Beam, with what this project's graphs need added.

        Raises:
            ConfigError: the runner lacks an address.
        """
        if self.kind is RunnerKind.DASK:
            if not self.has_option(*ADDRESS_OPTIONS):
                raise ConfigError(
                    "runner dask: give --workers N for a local cluster, or -- --dask_client_address=tcp://host:8786"
                )
            # An element is a work item of some 64 MB: Dask's guess of 128 elements to a task would make one task of a run.
            more = [] if self.has_option(*_PARTITION_OPTIONS) else ["--dask_partition_size=1"]
            return [*self.options, *more]
        if self.kind is RunnerKind.PORTABLE and not self.has_option(JOB_ENDPOINT):
            raise ConfigError("runner portable: give the job server, as in -- --job_endpoint=localhost:8099")
        if self.kind is RunnerKind.PRISM and not self.has_option(PRISM_LOCATION, JOB_ENDPOINT):
            # Beam would download a program from elsewhere and run it.
            raise ConfigError("runner prism: name its program, as in -- --prism_location=/usr/local/bin/prism")
        return list(self.options)


def remedy(error: BaseException | str) -> str:
    """Return the remedy for a failure that would come again each time; empty for one that may pass."""
    texts = [error] if isinstance(error, str) else list(_texts(error))
    for words, hint in _REMEDIES:
        if any(word in text for text in texts for word in words):
            return hint
    return ""


def _texts(error: BaseException) -> Iterator[str]:
    """Return the texts of an error and its causes, each with its class."""
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
