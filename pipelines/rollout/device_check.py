"""Whether a device accepts what is about to be published: the TUF client that devices use, on the files themselves.

Stands alone because it is the client's side, and what signs is the other.
"""

import tempfile
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path

from tuf.api.exceptions import DownloadError, DownloadHTTPError, RepositoryError
from tuf.ngclient.config import UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface
from tuf.ngclient.updater import Updater

from pipelines.errors import RefusedError

_BASE_URL = "repository://"


class _FolderFetcher(FetcherInterface):
    """Reads the files of a repository, and the timestamp that is not written yet."""

    def __init__(self, root: Path, timestamp: bytes) -> None:
        self._root = root
        self._timestamp = timestamp

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = url.removeprefix(_BASE_URL)
        if path == "metadata/timestamp.json":
            return iter((self._timestamp,))
        try:
            return iter(((self._root / path).read_bytes(),))
        except OSError as error:
            raise DownloadHTTPError(f"{path} is not in the repository", 404) from error


def check_as_device(root: Path, timestamp: bytes, now: datetime, paths: Iterable[str]) -> None:
    """Have a TUF client go from the first root metadata to the targets.

    Args:
        root: the repository.
        timestamp: the timestamp metadata to be published.
        now: the time at which the client looks.
        paths: target paths it must find, whole.

    Raises:
        RefusedError: it refuses something.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            client = Updater(
                folder,
                f"{_BASE_URL}metadata/",
                target_dir=folder,
                target_base_url=f"{_BASE_URL}targets/",
                fetcher=_FolderFetcher(root, timestamp),
                config=UpdaterConfig(max_root_rotations=1024),
                bootstrap=(root / "metadata" / "1.root.json").read_bytes(),
            )
            client._trusted_set.reference_time = now  # noqa: SLF001  # the client has no other way to be given a time
            client.refresh()
            for path in paths:
                found = client.get_targetinfo(path)
                if found is None:
                    raise RefusedError(f"a device would not find {path} in what is about to be published; nothing was published")
                client.download_target(found, str(Path(folder) / "target"))
        except (RepositoryError, DownloadError, OSError) as error:
            raise RefusedError(
                f"a device would refuse what is about to be published ({type(error).__name__}: {error}); nothing was published; "
                "`catchment model expiry` shows what is over"
            ) from error
