"""`/metrics`, `/live` and `/ready` over HTTP, on the loopback unless configured otherwise."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from catchment.runtime.clock import Clock
from catchment.runtime.health_http import HealthHttpServer, Page, health_page
from catchment.runtime.metrics_text import METRICS_TYPE
from pipelines.config import AlarmConfig
from pipelines.errors import ConfigError, PipelineError
from pipelines.lake.lake import Lake
from pipelines.status.exposition import exposition
from pipelines.status.health import DEFAULTS, assess
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
