"""Whether the signing keys vouch for a model: The Update Framework's client, in a process that only checks.

Its libraries would stay in the agent's memory for months, and a model comes once a week. So a limited process checks, without
network: it answers which file it needs next, the agent fetches that, and asks again. The metadata folder keeps what was verified.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, NoReturn

import msgspec
from tuf.api.exceptions import (
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    RepositoryError,
)
from tuf.api.metadata import TargetFile
from tuf.ngclient.config import UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface
from tuf.ngclient.updater import Updater

from edge_agent.errors import ModelError, ModelUnfitError, UntrustedModelError
from edge_agent.models.config import Distrusted, FileNeeded, TrustAnswer, TrustOptions, TrustRequest, Vouched
from schemas.errors import SchemaError
from schemas.model import MAX_DETAILS_BYTES, ModelSpec, decode_details, details_of, model_spec_from_plain
from schemas.rollout import Desired

_BASE_URL = "catchment://models/"
_MISSING = 404


class _FileNeededError(Exception):
    """The check stops here until the agent has fetched a file."""

    def __init__(self, needed: FileNeeded) -> None:
        super().__init__(needed.path)
        self.needed = needed


class _FetchedFiles(FetcherInterface):
    """Serves what the agent fetched; the first file that is not among it ends the check.

    Args:
        folder: of the files.
        names: path in the repository -> name in the folder; empty where the repository does not have it.
    """

    def __init__(self, folder: Path, names: Mapping[str, str]) -> None:
        self._folder = folder
        self._names = names

    @contextmanager
    def download_file(self, url: str, max_length: int) -> Iterator[IO[bytes]]:
        """Open a fetched file; one longer than `max_length` is refused."""
        path = url.removeprefix(_BASE_URL)
        name = self._names.get(path)
        if name is None:
            raise _FileNeededError(FileNeeded(path, max_length))
        if not name:
            raise DownloadHTTPError(f"{path} is not in the repository", _MISSING)
        with (self._folder / name).open("rb") as file:
            if (self._folder / name).stat().st_size > max_length:
                raise DownloadLengthMismatchError(f"{url}: more than the {max_length} bytes that the signed metadata allow")
            yield file

    def _fetch(self, url: str) -> NoReturn:
        raise DownloadError(f"{url}: files are opened, not streamed")


class TrustAnchor:
    """Follows what the root metadata brought to this device leads to, and nothing else.

    Args:
        options: root metadata, folders, and the largest model taken.
    """

    def __init__(self, options: TrustOptions) -> None:
        self._root = options.root
        self._folder = Path(options.metadata)
        self._fetched = Path(options.fetched)
        self._max_bytes = options.max_bytes

    def check(self, request: TrustRequest) -> FileNeeded | Vouched:
        """Check a model as far as the fetched files allow; its verified bytes go to `into`, where the request names it.

        Raises:
            UntrustedModelError: tampered, rolled back, foreign, or signed as another model.
            ModelUnfitError: too large for this device.
            ModelError: the repository lacks a file or is expired by this device's clock, or the disk refuses.
        """
        target = request.desired.target
        try:
            return self._check(request)
        except _FileNeededError as error:
            return error.needed
        except DownloadLengthMismatchError as error:
            raise UntrustedModelError(f"{target}: {error}") from error
        except ExpiredMetadataError as error:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            raise ModelError(
                f"clock or repository: {error}; this device's clock shows {now}; if that is right, the core must sign again "
                "(catchment model expiry)"
            ) from error
        except RepositoryError as error:
            raise UntrustedModelError(f"{target}: {type(error).__name__}: {error}") from error
        except (DownloadError, OSError) as error:
            raise ModelError(f"{target} cannot be fetched: {error}") from error

    def _check(self, request: TrustRequest) -> Vouched:
        desired = request.desired
        self._folder.mkdir(parents=True, exist_ok=True)
        updater = Updater(
            str(self._folder),
            f"{_BASE_URL}metadata/",
            target_base_url=f"{_BASE_URL}targets/",
            fetcher=_FetchedFiles(self._fetched, request.files),
            config=UpdaterConfig(max_root_rotations=64),
            bootstrap=self._root,
        )
        info = updater.get_targetinfo(desired.target)
        if info is None:
            raise UntrustedModelError(f"{desired.target} is not among the targets that the keys vouch for")
        spec = self._spec(updater, info, desired)
        if request.into:
            _keep(updater, info, Path(request.into))
        return Vouched(info.hashes["sha256"], spec)

    def _spec(self, updater: Updater, info: TargetFile, desired: Desired) -> ModelSpec:
        try:
            path = details_of(info.custom)
            spec = model_spec_from_plain(info.custom) if path is None else self._details(updater, path)
        except SchemaError as error:
            raise UntrustedModelError(f"{desired.target}: {error}") from error
        if (spec.name, spec.version) != (desired.name, desired.version):
            raise UntrustedModelError(
                f"{desired.target} is signed as {spec.name} version {spec.version}, not {desired.name} version {desired.version}"
            )
        if "sha256" not in info.hashes:
            raise UntrustedModelError(f"{desired.target}: its signed metadata carry no SHA-256")
        if info.length > self._max_bytes:
            raise ModelUnfitError(f"{desired.target} has {info.length} bytes; this device takes {self._max_bytes}")
        return spec

    def _details(self, updater: Updater, path: str) -> ModelSpec:
        """Return the description of a version, from the target next to it."""
        info = updater.get_targetinfo(path)
        if info is None:
            raise UntrustedModelError(f"{path} is not among the targets that the keys vouch for")
        if info.length > MAX_DETAILS_BYTES:
            raise ModelUnfitError(f"{path} has {info.length} bytes; a device takes {MAX_DETAILS_BYTES}")
        file = self._folder / "details.json"
        updater.download_target(info, str(file))
        return decode_details(file.read_bytes())


def _keep(updater: Updater, info: TargetFile, into: Path) -> None:
    """Write the verified bytes; a failure leaves nothing behind."""
    try:
        updater.download_target(info, str(into))
    except BaseException:
        with suppress(OSError):
            into.unlink(missing_ok=True)
        raise


def open_trust(options: bytes, _note: Callable[[bytes], None]) -> Callable[[bytes], bytes]:
    """Serve checks: the target of the process. See `catchment.runtime.worker.child`."""
    anchor = TrustAnchor(msgspec.msgpack.decode(options, type=TrustOptions))

    def handle(body: bytes) -> bytes:
        answer: TrustAnswer
        try:
            answer = anchor.check(msgspec.msgpack.decode(body, type=TrustRequest))
        except ModelError as error:
            answer = Distrusted(type(error).__name__, str(error))
        return msgspec.msgpack.encode(answer)

    return handle
