"""Whether the keys vouch for a model, against a small repository whose every byte the test decides."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.ngclient.updater import Updater

from edge_agent.errors import ModelError, ModelUnfitError, UntrustedModelError
from edge_agent.models.config import TrustOptions
from edge_agent.models.fetcher import Check, Held, ModelFetcher, PieceFetcher, TrustedModel
from edge_agent.models.trust import TrustAnchor
from edge_agent.uplink.downlink import ModelRequest
from schemas.model import ImageInput, ModelSpec, model_spec_to_plain
from schemas.rollout import STATUS_MISSING, STATUS_OK, Desired, decode_piece_request

LATER = datetime.now(UTC).replace(microsecond=0) + timedelta(days=30)
BODY = b"the model's bytes"
SPEC = ModelSpec("bright", 2, ImageInput(4, 4))
DESIRED = Desired("r", "bright", 2, "bright/2.onnx", 1)
CUSTOM: dict[str, Any] = model_spec_to_plain(SPEC)


def digest_of(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


class Repository:
    """All four roles with one key each time; `files` is what a request finds."""

    def __init__(self) -> None:
        self.signer = CryptoSigner.generate_ed25519()
        self.files: dict[str, bytes] = {}
        self.roots: list[bytes] = []
        self.rotate(self.signer)
        self.publish()

    def rotate(self, signer: CryptoSigner) -> None:
        """A root of the next version, signed by the old and the new key, that hands all roles to the new one."""
        root = Root(version=len(self.roots) + 1, expires=LATER, consistent_snapshot=True)
        for role in ("root", "timestamp", "snapshot", "targets"):
            root.add_key(signer.public_key, role)
        signed = Metadata(root)
        signed.sign(signer)
        if signer is not self.signer:
            signed.sign(self.signer, append=True)
        self.signer = signer
        self.roots.append(signed.to_bytes())
        self.files[f"metadata/{root.version}.root.json"] = self.roots[-1]

    def publish(self, body: bytes = BODY, target: str = DESIRED.target, custom: object = CUSTOM, **hashes: str) -> None:
        """One target, with all the metadata above it."""
        entry = TargetFile(len(body), hashes or {"sha256": digest_of(body)}, target, {} if custom is None else {"custom": custom})
        targets = self._sign("1.targets", Targets(expires=LATER, targets={target: entry}))
        snapshot = self._sign("1.snapshot", Snapshot(expires=LATER, meta={"targets.json": MetaFile(1, len(targets))}))
        self._sign("timestamp", Timestamp(expires=LATER, snapshot_meta=MetaFile(1, len(snapshot))))
        folder, _, name = target.rpartition("/")
        for value in entry.hashes.values():
            self.files[f"targets/{folder}/{value}.{name}"] = body

    def _sign(self, name: str, role: Any) -> bytes:
        signed: Metadata[Any] = Metadata(role)
        signed.sign(self.signer)
        self.files[f"metadata/{name}.json"] = signed.to_bytes()
        return self.files[f"metadata/{name}.json"]


@pytest.fixture
def repository() -> Repository:
    return Repository()


Fetch = Callable[..., TrustedModel]


@contextmanager
def check_here(options: TrustOptions) -> Iterator[Check]:
    """As `trust_process`, but in this process: errors keep their causes, and a mutant is noticed."""
    yield TrustAnchor(options).check


@pytest.fixture
def fetch(repository: Repository, tmp_path: Path) -> Fetch:
    """Fetch as a device does, its requests answered at once out of the repository."""

    def fetch(
        desired: Desired = DESIRED, max_bytes: int = 1_000, into: Path | None = None, held: Held = lambda _version, _digest: None
    ) -> TrustedModel:
        def send(sent: ModelRequest) -> None:
            request = decode_piece_request(sent.body)
            found = repository.files.get(request.path)
            piece = (found or b"")[request.offset : request.offset + request.length]
            status = STATUS_MISSING if found is None else STATUS_OK
            pieces.on_piece(sent.correlation, [("total", str(len(found or b""))), ("status", status)], piece)

        pieces = PieceFetcher(send, timeout_s=0.001, tries=1)
        state = tmp_path / "state"
        options = TrustOptions(repository.roots[0], str(state / "metadata"), str(state / "fetched"), max_bytes)
        return ModelFetcher(pieces, options, check_here).fetch(desired, into or tmp_path / "incoming.onnx", held)

    return fetch


def test_a_model_that_the_keys_vouch_for_comes_with_what_they_say_of_it(fetch: Fetch, tmp_path: Path) -> None:
    path = tmp_path / "incoming.onnx"
    assert fetch() == TrustedModel(path, digest_of(BODY), SPEC)
    assert path.read_bytes() == BODY
    assert {"root.json", "timestamp.json", "snapshot.json", "targets.json"} <= {
        file.name for file in (tmp_path / "state" / "metadata").iterdir()
    }
    assert fetch().spec == SPEC, "a second time, with the metadata kept"


def test_bytes_that_are_there_already_are_not_fetched(repository: Repository, fetch: Fetch, tmp_path: Path) -> None:
    del repository.files[f"targets/bright/{digest_of(BODY)}.2.onnx"]
    there = {(2, digest_of(BODY)): tmp_path / "held.onnx"}
    model = fetch(held=lambda version, digest: there.get((version, digest)))
    assert model == TrustedModel(tmp_path / "held.onnx", digest_of(BODY), SPEC)


def test_a_target_that_is_not_among_those_signed_is_not_trusted(fetch: Fetch, tmp_path: Path) -> None:
    message = r"^bright/3\.onnx is not among the targets that the keys vouch for$"
    with pytest.raises(UntrustedModelError, match=message):
        fetch(Desired("r", "bright", 3, "bright/3.onnx", 1))
    assert not (tmp_path / "incoming.onnx").exists()


@pytest.mark.parametrize(("name", "version"), [("other", 2), ("bright", 3)])
def test_a_target_signed_as_another_model_is_not_trusted(repository: Repository, fetch: Fetch, name: str, version: int) -> None:
    repository.publish(custom=model_spec_to_plain(ModelSpec(name, version, ImageInput(4, 4))))
    message = rf"^bright/2\.onnx is signed as {name} version {version}, not bright version 2$"
    with pytest.raises(UntrustedModelError, match=message):
        fetch()


@pytest.mark.parametrize("custom", [None, {}, {"catchment": 1}, {"catchment": "{}"}])
def test_a_target_whose_description_is_none_is_not_trusted(repository: Repository, fetch: Fetch, custom: object) -> None:
    repository.publish(custom=custom)
    with pytest.raises(UntrustedModelError, match=r"^bright/2\.onnx: the signed target"):
        fetch()


def test_a_target_without_a_sha256_is_not_trusted(repository: Repository, fetch: Fetch) -> None:
    repository.publish(sha512=hashlib.sha512(BODY).hexdigest())
    with pytest.raises(UntrustedModelError, match=r"^bright/2\.onnx: its signed metadata carry no SHA-256$"):
        fetch()


def test_a_model_may_be_as_large_as_the_device_takes_and_not_a_byte_larger(fetch: Fetch, tmp_path: Path) -> None:
    assert fetch(max_bytes=len(BODY)).path.read_bytes() == BODY
    (tmp_path / "incoming.onnx").unlink()
    with pytest.raises(ModelUnfitError, match=rf"^bright/2\.onnx has {len(BODY)} bytes; this device takes {len(BODY) - 1}$"):
        fetch(max_bytes=len(BODY) - 1)
    assert not (tmp_path / "incoming.onnx").exists(), "it was fetched though it does not fit"


def test_bytes_that_are_not_those_signed_are_not_trusted(repository: Repository, fetch: Fetch) -> None:
    repository.files[f"targets/bright/{digest_of(BODY)}.2.onnx"] = BODY[:-1] + b"S"
    with pytest.raises(UntrustedModelError, match=r"^bright/2\.onnx: LengthOrHashMismatchError: .*hash") as caught:
        fetch()
    assert caught.value.__cause__ is not None


def test_bytes_beyond_those_signed_are_not_taken(repository: Repository, fetch: Fetch) -> None:
    repository.files[f"targets/bright/{digest_of(BODY)}.2.onnx"] = BODY + b"more"
    with pytest.raises(
        UntrustedModelError, match=r"^bright/2\.onnx: catchment://models/targets/.*more than the 17 bytes"
    ) as caught:
        fetch()
    assert caught.value.__cause__ is not None


def test_metadata_of_another_key_are_not_trusted(repository: Repository, fetch: Fetch) -> None:
    repository.signer = CryptoSigner.generate_ed25519()
    repository.publish()
    with pytest.raises(UntrustedModelError, match=r"^bright/2\.onnx: UnsignedMetadataError: timestamp"):
        fetch()


def test_a_file_that_is_not_there_is_tried_again_later(repository: Repository, fetch: Fetch) -> None:
    del repository.files[f"targets/bright/{digest_of(BODY)}.2.onnx"]
    with pytest.raises(ModelError, match=r"^bright/2\.onnx cannot be fetched: targets/.* is not in the repository$") as caught:
        fetch()
    assert type(caught.value) is ModelError
    assert caught.value.__cause__ is not None


def test_a_disk_that_refuses_is_tried_again_later(fetch: Fetch, tmp_path: Path) -> None:
    (tmp_path / "in_the_way").write_bytes(b"")
    with pytest.raises(ModelError, match=r"^bright/2\.onnx cannot be fetched: .*(Not a directory|File exists)") as caught:
        fetch(into=tmp_path / "in_the_way" / "incoming.onnx")
    assert type(caught.value) is ModelError


def test_a_disk_that_fills_up_in_the_middle_keeps_no_partial_file(
    fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(_updater: object, _info: object, path: str) -> None:
        Path(path).write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Updater, "download_target", fill)
    with pytest.raises(ModelError, match="No space left on device") as caught:
        fetch()
    assert type(caught.value) is ModelError
    assert not (tmp_path / "incoming.onnx").exists()


def test_files_of_a_fetch_are_removed_when_it_ends(repository: Repository, fetch: Fetch, tmp_path: Path) -> None:
    fetch()
    assert not (tmp_path / "state" / "fetched").exists()
    repository.files.clear()
    with pytest.raises(ModelError):
        fetch()
    assert not (tmp_path / "state" / "fetched").exists()


def test_the_cause_of_a_failed_fetch_is_reported_too(repository: Repository, fetch: Fetch) -> None:
    target = f"bright/{'2' * 180}.onnx"
    repository.publish(target=target)
    message = rf"^{target} cannot be fetched: targets/.*: repository file .* is malformed$"
    with pytest.raises(ModelError, match=message):
        fetch(Desired("r", "bright", 2, target, 1))


def test_keys_that_changed_64_times_since_the_root_was_brought_are_followed(repository: Repository, fetch: Fetch) -> None:
    for _ in range(64):
        repository.rotate(CryptoSigner.generate_ed25519())
    repository.publish()
    assert fetch().spec == SPEC


def test_keys_that_changed_oftener_are_followed_no_further(repository: Repository, fetch: Fetch) -> None:
    for _ in range(65):
        repository.rotate(CryptoSigner.generate_ed25519())
    repository.publish()
    with pytest.raises(UntrustedModelError, match="UnsignedMetadataError"):
        fetch()


def test_the_root_that_was_brought_decides_and_not_what_the_repository_says(repository: Repository, fetch: Fetch) -> None:
    foreign = Repository()
    repository.files = foreign.files
    with pytest.raises(UntrustedModelError, match="UnsignedMetadataError"):
        fetch()
