"""Serve `/metrics` (a survey as Prometheus text), `/live` and `/ready` over HTTP, on the loopback unless configured otherwise."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from catchment.runtime.clock import Clock
from catchment.runtime.health_http import HealthHttpServer, Page, health_page
from catchment.runtime.metrics_text import METRICS_TYPE, MetricsPage
from pipelines.config import AlarmConfig
from pipelines.errors import ConfigError, PipelineError
from pipelines.lake.lake import Lake
from pipelines.status.health import DEFAULTS, assess, quarantine_share
from pipelines.status.survey import Survey, survey


@contextmanager
def serving(lake: Lake, host: str, port: int, clock: Clock, alarms: AlarmConfig = DEFAULTS) -> Iterator[int]:
    """Serve until the block is left; the port, which is one the system chose if 0 was asked for.

    Raises:
        ConfigError: the address cannot be bound.
    """

    def page(render: Callable[[Survey], Page]) -> Callable[[], Page]:
        def surveyed() -> Page:
            try:
                found = survey(lake, clock.now_ms() * 1_000)
            except (PipelineError, OSError) as error:  # a lake that cannot be read is neither ready nor measured
                return _probe([str(error)], is_good=False)
            return render(found)

        return surveyed

    def probe(found: Survey, *, live: bool) -> Page:
        result = assess(found, alarms)
        return _probe(result.alarms, is_good=result.is_alive if live else result.is_ready)

    pages = {
        "/metrics": page(lambda found: health_page(exposition(found, alarms), is_good=True, kind=METRICS_TYPE)),
        "/live": page(lambda found: probe(found, live=True)),
        "/ready": page(lambda found: probe(found, live=False)),
    }
    try:
        server = HealthHttpServer(host, port, pages)
    except OSError as error:
        raise ConfigError(f"watch: {host}:{port} cannot be served ({error}); give another port") from error
    with server:
        yield server.port


def _probe(alarms: Sequence[str], *, is_good: bool) -> Page:
    return health_page(json.dumps({"ok": is_good, "alarms": alarms}), is_good=is_good, kind="application/json")


def exposition(found: Survey, limits: AlarmConfig = DEFAULTS) -> str:
    """All metrics of the core."""
    page = MetricsPage()
    result = assess(found, limits)
    page.add_one("catchment_live", "All processes of the core send heartbeats", float(result.is_alive))
    page.add_one("catchment_ready", "The core gets on", float(result.is_ready))
    page.add_one("catchment_alarms", "What a person should look at", float(len(result.alarms)))
    kinds = [({"kind": kind}, float(count)) for kind, count in result.counts().items()]
    page.add("catchment_alarms_of_kind", "Alarms by what they are about", kinds)
    page.add_one("catchment_books_unbalanced", "Streams of devices whose books do not balance", float(len(found.unbalanced)))
    page.add_one("catchment_run", "The last committed run", float(found.run))
    _ages(page, found)
    _add_streams(page, found)
    page.add("catchment_run_paused", "The run paused by an internal error; 0: none", [({}, float(found.faults.stopped_run))])
    page.add_one("catchment_requests_open", "Replays and discards asked for and not done", float(found.open_requests))
    page.add_one("catchment_suspended", "Policies and inspectors in force that may not run", float(len(found.suspended)))
    _add_devices(page, found)
    _add_processes(page, found)
    return page.text()


def _add_streams(page: MetricsPage, found: Survey) -> None:
    for name in ("received", "committed", "quarantined", "discarded", "duplicate", "dropped", "closed"):
        samples = [({"stream": stream.stream}, float(getattr(stream.counts, name))) for stream in found.streams]
        page.add(f"catchment_samples_{name}_total", f"Samples {name} since the lake began", samples, kind="counter")
    rows = [({"stream": stream.stream}, float(stream.rows)) for stream in found.streams if stream.rows is not None]
    page.add("catchment_table_rows", "Rows of the stream's table", rows)
    page.add("catchment_quarantine_open", "Refused samples that wait for a replay or a discard",
             [({"stage": stage}, float(count)) for stage, count in sorted(found.quarantined_open.items())])  # fmt: skip
    shares = [({"stream": stream.stream}, quarantine_share(stream)) for stream in found.streams]
    page.add("catchment_quarantine_share", "Share of what the last runs settled that went to quarantine", shares)


def _add_devices(page: MetricsPage, found: Survey) -> None:
    over = [({"device": device}, 1.0) for heartbeat in found.heartbeats for device in heartbeat.over_share]
    page.add("catchment_device_over_share", "Devices that send more than their share; at most 20 of each bridge", over)
    page.add("catchment_refused_streams", "Streams of devices of which the core refuses everything",
             [({}, float(found.devices.refused_streams))])  # fmt: skip
    page.add_one("catchment_ledger_ranges", "Settled ranges of all devices", float(found.devices.ranges))
    page.add("catchment_ledger_device_ranges_max", "Settled ranges of the device with the most",
             [({}, float(max((one.ranges for one in found.devices.crowded), default=0)))])  # fmt: skip


def _add_processes(page: MetricsPage, found: Survey) -> None:
    for heartbeat in found.heartbeats:
        labels = {"role": heartbeat.role, "name": heartbeat.name}
        page.add(
            "catchment_heartbeat_age_seconds",
            "Seconds since a process's last heartbeat",
            [(labels, found.at_us / 1e6 - heartbeat.at_ms / 1e3)],
        )
        page.add("catchment_process_ready", "A process says that it gets on", [(labels, float(heartbeat.is_ready))])
        for name, value in sorted(heartbeat.counters.items()):
            page.add(
                f"catchment_{heartbeat.role}_{name}",
                f"{name} of the {heartbeat.role}, since it started",
                [({"name": heartbeat.name}, value)],
            )


def _ages(page: MetricsPage, found: Survey) -> None:
    waiting = [({"bridge": one.bridge}, one) for one in found.waiting]
    page.add(
        "catchment_landing_waiting_segments", "Sealed segments no run has taken", [(k, float(o.segments)) for k, o in waiting]
    )
    page.add("catchment_landing_waiting_bytes", "Their bytes", [(labels, float(one.bytes)) for labels, one in waiting])
    page.add("catchment_landing_oldest_seconds", "Age of the oldest",
             [(labels, (found.at_us - one.oldest_us) / 1e6) for labels, one in waiting])  # fmt: skip
    page.add("catchment_waiting_samples", "Samples landed and not settled",
             [({"stream": stream.stream}, float(stream.waiting)) for stream in found.streams])  # fmt: skip
    page.add("catchment_oldest_unsettled_seconds", "Age of the oldest sample landed and not settled",
             [({"stream": stream.stream}, (found.at_us - stream.oldest_waiting_us) / 1e6)
              for stream in found.streams if stream.oldest_waiting_us is not None])  # fmt: skip
    page.add("catchment_stream_commit_age_seconds", "Since a stream was last committed to",
             [({"stream": stream.stream}, (found.at_us - stream.last_commit_us) / 1e6)
              for stream in found.streams if stream.last_commit_us is not None])  # fmt: skip
    if found.last_commit_us is not None:
        page.add_one("catchment_commit_age_seconds", "Since the last commit", (found.at_us - found.last_commit_us) / 1e6)
