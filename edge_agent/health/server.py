"""`/live`, `/ready` and `/metrics` on a loopback port, for whatever watches the device."""

from collections.abc import Callable

from catchment.runtime.health_http import HealthHttpServer, Page, health_page
from catchment.runtime.metrics_text import METRICS_TYPE
from edge_agent.config import HealthConfig
from edge_agent.errors import AgentError, ConfigError
from edge_agent.health.agent_stats import AgentStats, ProbeResult, check_live, check_ready, render_metrics

_HOST = "127.0.0.1"


class HealthServer(HealthHttpServer):
    """Serves in threads of its own until it is closed.

    Args:
        config: the port, and when to answer 503.
        snapshot: takes one look at the agent; may be called from any thread.

    Raises:
        ConfigError: the port is taken.
    """

    def __init__(self, config: HealthConfig, snapshot: Callable[[], AgentStats]) -> None:
        def page(render: Callable[[AgentStats], Page]) -> Callable[[], Page]:
            def looked() -> Page:
                try:
                    return render(snapshot())
                except AgentError as error:
                    return health_page(f"{error}\n", is_good=False)

            return looked

        pages = {
            "/live": page(lambda stats: _probe(check_live(stats, config.stalled_after_s))),
            "/ready": page(lambda stats: _probe(check_ready(stats, config.stalled_after_s, config.ready_within_s))),
            "/metrics": page(lambda stats: health_page(render_metrics(stats), is_good=True, kind=METRICS_TYPE)),
        }
        try:
            super().__init__(_HOST, config.port, pages)
        except OSError as error:
            raise ConfigError(f"[health] port {config.port}: {error.strerror}; choose one that is free") from error


def _probe(result: ProbeResult) -> Page:
    return health_page(f"{result.message}\n", is_good=result.is_good)
