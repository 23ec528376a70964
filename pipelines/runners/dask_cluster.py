"""A Dask cluster on this machine, kept open over runs: to start one costs seconds, a run on a warm one tenths of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipelines.errors import ConfigError


@contextmanager
def local_cluster(workers: int) -> Iterator[str]:
    """Start worker processes and stop them at the end; one that dies is started again meanwhile.

    Args:
        workers: how many processes.

    Yields:
        The scheduler's address.

    Raises:
        ConfigError: Dask is not installed.
    """
    try:
        from distributed import LocalCluster  # noqa: PLC0415  # an extra, and slow to import
    except ImportError as error:
        raise ConfigError("runner dask needs the extra `dask`: pip install 'catchment[dask]'") from error
    start: Any = LocalCluster  # it ships no types
    with start(n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        yield str(cluster.scheduler_address)
