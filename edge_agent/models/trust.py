"""Whether the signing keys vouch for a model: The Update Framework's client, with our transport under it."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

from tuf.api.exceptions import DownloadError, DownloadLengthMismatchError, ExpiredMetadataError, RepositoryError
from tuf.api.metadata import TargetFile
from tuf.ngclient.config import UpdaterConfig
from tuf.ngclient.updater import Updater

from edge_agent.errors import ModelError, ModelUnfitError, UntrustedModelError
from edge_agent.models.fetcher import BASE_URL, PieceFetcher
from schemas.errors import SchemaError
from schemas.model import MAX_DETAILS_BYTES, ModelSpec, decode_details, details_of, model_spec_from_plain
from schemas.rollout import Desired

# The verified bytes are copied once from where they came in.
_COPIES = 2
_SPARE_BYTES = 1024 * 1024
Held: TypeAlias = Callable[[int, str], Path | None]


@dataclass(frozen=True, slots=True)
class TrustedModel:
    """A model's bytes on disk that the keys vouch for, and what they say it is."""

    path: Path
    digest: str
    spec: ModelSpec


class TrustAnchor:
    """Fetches what the root metadata brought to this device leads to, and nothing else.

    Args:
        root: the trusted root metadata's bytes.
        folder: where the newest metadata are kept, which is what makes going back detectable.
        fetcher: the way to the repository.
        max_bytes: the largest model taken.
    """

    def __init__(self, root: bytes, folder: Path, fetcher: PieceFetcher, max_bytes: int) -> None:
        self._root = root
        self._folder = folder
        self._fetcher = fetcher
        self._max_bytes = max_bytes

    def fetch(self, desired: Desired, into: Path, held: Held) -> TrustedModel:
        """Bring the desired model's bytes into a file.

        Args:
            desired: which model.
            into: where they go.
            held: where the bytes of a version with a digest are already, whole; then they are not fetched.

        Raises:
            UntrustedModelError: tampered, rolled back, foreign, or signed as another model.
            ModelUnfitError: too large for this device.
            ModelError: the repository cannot be reached or is expired by this device's clock, or the disk refuses.
        """
        try:
            return self._fetch(desired, into, held)
        except DownloadLengthMismatchError as error:
            raise UntrustedModelError(f"{desired.target}: {error}") from error
        except ExpiredMetadataError as error:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            raise ModelError(
                f"clock or repository: {error}; this device's clock shows {now}; if that is right, the core must sign again "
                "(catchment model expiry)"
            ) from error
        except RepositoryError as error:
            raise UntrustedModelError(f"{desired.target}: {type(error).__name__}: {error}") from error
        except (DownloadError, OSError) as error:
            raise ModelError(f"{desired.target} cannot be fetched: {_causes(error)}") from error

    def _fetch(self, desired: Desired, into: Path, held: Held) -> TrustedModel:
        self._folder.mkdir(parents=True, exist_ok=True)
        updater = Updater(
            str(self._folder),
            f"{BASE_URL}metadata/",
            target_base_url=f"{BASE_URL}targets/",
            fetcher=self._fetcher,
            config=UpdaterConfig(max_root_rotations=64),
            bootstrap=self._root,
        )
        info = updater.get_targetinfo(desired.target)
        if info is None:
            raise UntrustedModelError(f"{desired.target} is not among the targets that the keys vouch for")
        spec = self._spec(updater, info, desired)
        digest = info.hashes["sha256"]
        path = held(spec.version, digest)
        if path is None:
            self._download(updater, info, into)
        return TrustedModel(path or into, digest, spec)

    def _download(self, updater: Updater, info: TargetFile, into: Path) -> None:
        """Fetch the bytes; a download that fails leaves nothing behind."""
        needed = _COPIES * info.length + _SPARE_BYTES
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise ModelError(f"disk: {info.path} needs {needed:,} bytes while it is fetched, and {free:,} are free")
        try:
            updater.download_target(info, str(into))
        except BaseException:
            with suppress(OSError):
                into.unlink(missing_ok=True)
            raise

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
        """What is said of a version in the target beside it."""
        info = updater.get_targetinfo(path)
        if info is None:
            raise UntrustedModelError(f"{path} is not among the targets that the keys vouch for")
        if info.length > MAX_DETAILS_BYTES:
            raise ModelUnfitError(f"{path} has {info.length} bytes; a device takes {MAX_DETAILS_BYTES}")
        file = self._folder / "details.json"
        updater.download_target(info, str(file))
        return decode_details(file.read_bytes())


def _causes(error: BaseException) -> str:
    return f"{error}" if error.__cause__ is None else f"{error}: {error.__cause__}"
