"""The storage library behind a remote lake: opened, and its errors told as what to do next."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from typing import Any

from pipelines.config import RemoteConfig
from pipelines.errors import ConfigError, RetryLaterError

CONNECT_S = 5
# Processes that were forked from one in which the library had run.
_LOST: set[int] = set()


@contextmanager
def translate_errors(where: str) -> Iterator[None]:
    """What the storage library raises, as what to do next. Answers that are no failure pass."""
    from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError, PreconditionError  # noqa: PLC0415  # an extra

    try:
        yield
    except (AlreadyExistsError, PreconditionError):
        raise
    except NotFoundError as error:
        raise FileNotFoundError(where) from error
    except BaseError as error:
        reason = str(error).split("\n", 1)[0]
        raise RetryLaterError(f"{where}: {reason}; is the storage there, and are its keys right?") from error


@lru_cache(maxsize=16)
def store(config: RemoteConfig) -> Any:
    """The bucket, opened once for each configuration.

    Raises:
        ConfigError: the library is not installed.
    """
    try:
        from obstore.store import S3Store  # noqa: PLC0415  # an extra
    except ImportError as error:
        raise ConfigError("a remote lake needs the extra `s3`: pip install 'catchment[s3]'") from error
    more: dict[str, Any] = {"endpoint": config.endpoint} if config.endpoint else {}
    return S3Store.from_url(
        config.url,
        region=config.region,
        client_options={
            "allow_http": config.endpoint.startswith("http://"),
            "timeout": f"{config.timeout_s}s",
            "connect_timeout": f"{CONNECT_S}s",
        },
        retry_config={"max_retries": config.retries, "retry_timeout": timedelta(seconds=config.retry_s)},
        **more,
    )


def is_lost_by_fork() -> bool:
    """Whether this process was forked from one in which the library had run: then its requests would wait forever."""
    return os.getpid() in _LOST


def _note_fork() -> None:
    if store.cache_info().currsize or _LOST:
        _LOST.add(os.getpid())


os.register_at_fork(after_in_child=_note_fork)
