"""A set in a bucket: what is read comes here once, by few requests, compared with its hash; a full cache lets it go again."""

import multiprocessing
import pickle
from collections.abc import Callable, Iterator
from itertools import islice
from multiprocessing.context import ForkContext, SpawnContext
from pathlib import Path

import numpy as np
import pytest

from pipelines.errors import CorruptLakeError, NotFoundError, RetryLaterError
from pipelines.lake.lake import lake_at
from pipelines.lake.remote import Remote, bind
from pipelines.training.array_reader import ArraySample
from pipelines.training.array_rules import WindowRule
from pipelines.training.bucket_files import merged_ranges
from pipelines.training.build import BuildOptions, build_set
from pipelines.training.manifest import load_manifest
from pipelines.training.open import TrainingSet, open_set
from pipelines.training.shards import ShardLimits
from tests.fakes.s3_server import S3, served
from tests.pipelines.training.test_set_build import built, rot
from tests.pipelines.training.test_set_windows import built as windows_built
from tests.plant.present import present

Opened = Callable[..., TrainingSet]


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with served(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def folder(lake: Path) -> Path:
    """A set of six shards."""
    return built(lake, split={"train": 1.0}, limits=ShardLimits(max_rows=40))


@pytest.fixture
def opened(s3: S3, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Opens the set as it lies in the bucket."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{s3.port}")
    return in_bucket(s3, folder, tmp_path)


def in_bucket(s3: S3, folder: Path, cache: Path) -> Opened:
    """Brings a set to the bucket; opens it there."""
    name = f"sets/{cache.name}"
    remote = Remote(s3.config(name))
    for path in folder.rglob("*"):
        if path.is_file():
            remote.put(str(path.relative_to(folder)), path)
    return lambda **options: open_set(f"s3://lake/{name}", **{"cache": cache / "cache", **options})


def shard_gets(s3: S3) -> int:
    return sum(1 for method, path, *_ in s3.requests() if method == "GET" and path.endswith(".parquet"))


def payloads_of(split: TrainingSet) -> dict[int, bytes | None]:
    return {sample.index: sample.payload for sample in split.shuffled(1)}


def test_a_set_in_a_bucket_has_the_samples_of_the_one_in_a_folder(opened: Opened, folder: Path) -> None:
    far, here = opened(), open_set(folder)
    assert payloads_of(far) == payloads_of(here)
    assert [sample.payload for sample in far] == [sample.payload for sample in here]
    assert far[7].columns == here[7].columns
    assert far.to_arrow() == here.to_arrow()
    assert far.to_arrow(["payload", "seq"]) == here.to_arrow(["payload", "seq"])
    assert far.verify() == here.verify()


def test_a_set_of_arrays_in_a_bucket_has_the_windows_of_the_one_in_a_folder(
    driven: Path, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sample by sample, in batches, and as Dask and xarray open it; a shard that rots in the bucket is noticed."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{s3.port}")
    options = BuildOptions({"train": 1.0}, arrays=WindowRule(2.0, 1.0, 10.0, ("speed", "yaw")))
    manifest = build_set(lake_at(driven), "drives", ("telemetry",), options=options)
    folder = driven / "sets/drives/1"
    far, here = in_bucket(s3, folder, tmp_path)(), open_set(folder, "train")
    assert len(far) == len(here) == manifest.rows > 100
    for one, other in zip(far, here, strict=True):
        assert isinstance(one, ArraySample)
        assert isinstance(other, ArraySample)
        assert np.array_equal(one.array, other.array, equal_nan=True)
        assert np.array_equal(present(one.mask), present(other.mask))
        assert one.columns == other.columns
    for batch, same in zip(far.numpy(16, seed=3), here.numpy(16, seed=3), strict=True):
        assert batch.keys() == same.keys()
        assert np.array_equal(batch["windows"], same["windows"], equal_nan=True)
    assert far.verify() == here.verify()
    assert np.array_equal(far.to_dask().compute(), here.to_dask().compute(), equal_nan=True)
    shard = next(each for each in manifest.array_files if each.rows)
    rotten = tmp_path / "rotten"
    body = bytearray((folder / shard.path).read_bytes())
    body[100] ^= 1
    rotten.write_bytes(body)
    Remote(s3.config(f"sets/{tmp_path.name}")).put(shard.path, rotten)
    with pytest.raises(CorruptLakeError):
        list(in_bucket_again(tmp_path))


def test_a_set_of_arrays_is_built_into_a_bucket_and_opened_there(
    driven: Path, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a machine whose working copy is empty; another one finds every file in the bucket."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{s3.port}")
    config = s3.config(f"lakes/{tmp_path.name}")
    for path in driven.rglob("*"):
        if path.is_file():
            Remote(config).put(str(path.relative_to(driven)), path)
    bind(tmp_path / "working", config)
    rule = WindowRule(2.0, 1.0, 10.0, ("speed", "yaw"))
    options = BuildOptions({"train": 1.0}, arrays=rule)
    there = build_set(lake_at(tmp_path / "working"), "drives", ("telemetry",), options=options)
    here = build_set(lake_at(driven), "drives", ("telemetry",), options=options)
    assert [(file.path, file.sha256) for file in there.array_files] == [(file.path, file.sha256) for file in here.array_files]
    far = open_set(f"{config.url}/sets/drives/1", "train", cache=tmp_path / "cache")
    assert far.verify() == open_set(driven / "sets/drives/1", "train").verify()
    assert len(far) == here.rows


def in_bucket_again(cache: Path) -> TrainingSet:
    """The set of a test, into another cache."""
    return open_set(f"s3://lake/sets/{cache.name}", cache=cache / "again")


def test_a_sample_is_fetched_once_whoever_reads_it_again(opened: Opened, s3: S3) -> None:
    before = shard_gets(s3)
    payloads_of(opened())
    first = shard_gets(s3) - before
    assert 0 < first < 239
    payloads_of(opened())
    assert shard_gets(s3) - before == first


def test_by_blocks_each_shard_is_fetched_by_one_request(opened: Opened, s3: S3) -> None:
    split, before = opened(), shard_gets(s3)
    seen = [sample.index for sample in split.shuffled(1, shuffle="block")]
    assert sorted(seen) == list(range(239))
    assert shard_gets(s3) - before == 6


def test_an_epoch_goes_on_exactly_with_other_ranks_and_an_empty_cache(opened: Opened, tmp_path: Path) -> None:
    epoch = opened().shuffled(3, shuffle="block")
    seen = [sample.index for sample in islice(epoch, 100)]
    state = epoch.state()
    for rank in range(3):
        other = opened(cache=tmp_path / "other").resume(state, rank=rank, world=3, tail="uneven")
        seen += [sample.index for sample in other]
    assert sorted(seen) == list(range(239))


def test_the_cache_stays_within_its_bound_and_every_sample_still_comes(opened: Opened, tmp_path: Path, folder: Path) -> None:
    bound = load_manifest(folder / "manifest.json").shards[0].bytes * 3
    split = opened(cache_bytes=bound)
    wanted = payloads_of(open_set(folder))
    for epoch in range(2):
        assert {sample.index: sample.payload for sample in split.shuffled(1, epoch, shuffle="block")} == wanted
    copies = [path.stat().st_blocks * 512 for path in (tmp_path / "cache").rglob("*.parquet")]
    assert 0 < sum(copies) <= bound + bound // 16 + 128 * 1024


def test_a_copy_that_rotted_is_fetched_again(opened: Opened, tmp_path: Path, folder: Path) -> None:
    payloads_of(opened())
    for path in (tmp_path / "cache").rglob("*.parquet"):
        with path.open("r+b") as file:
            file.write(bytes(load_manifest(folder / "manifest.json").shards[0].bytes // 2))
    assert payloads_of(opened()) == payloads_of(open_set(folder))
    assert payloads_of(opened(check="never")) == payloads_of(open_set(folder))


def test_what_rotted_in_the_bucket_is_named(s3: S3, folder: Path, opened: Opened, tmp_path: Path) -> None:
    rot(folder, 5)
    shard = load_manifest(folder / "manifest.json").shards[0].path
    Remote(s3.config(f"sets/{tmp_path.name}")).put(shard, folder / shard)
    with pytest.raises(CorruptLakeError, match=r"sample 5 .* is not the one that was captured"):
        opened()[5]
    batches = opened().numpy(64, on_bad="skip")
    assert sum(len(batch["index"]) for batch in batches) == 238
    assert batches.skipped == 1


def test_a_shard_that_is_gone_or_a_wrong_address_is_named(s3: S3, opened: Opened, folder: Path, tmp_path: Path) -> None:
    split = opened()
    for shard in load_manifest(folder / "manifest.json").shards:
        Remote(s3.config(f"sets/{tmp_path.name}")).delete(shard.path)
    with pytest.raises(CorruptLakeError, match="is gone, and the manifest lists it"):
        split[0]
    with pytest.raises(NotFoundError, match="no training set there"):
        open_set(f"s3://lake/sets/{tmp_path.name}-no", cache=tmp_path / "cache")


def test_a_storage_that_is_away_is_named(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(RetryLaterError):
        opened()


def _read(split: TrainingSet, low: int, answers: "multiprocessing.Queue[dict[int, bytes | None]]") -> None:
    answers.put({index: split[index].payload for index in range(low, 239, 2)})


@pytest.mark.slow
@pytest.mark.parametrize("context", [multiprocessing.get_context("fork"), multiprocessing.get_context("spawn")])
def test_workers_forked_or_spawned_read_what_this_process_reads(
    opened: Opened, folder: Path, context: ForkContext | SpawnContext
) -> None:
    split = opened()
    assert split[0].payload == open_set(folder)[0].payload
    answers = context.Queue()
    workers = [context.Process(target=_read, args=(split, low, answers)) for low in range(2)]
    for worker in workers:
        worker.start()
    found = {index: payload for _ in workers for index, payload in answers.get(timeout=120).items()}
    for worker in workers:
        worker.join()
    assert found == payloads_of(open_set(folder))


def test_a_pickled_set_takes_its_bucket_along_and_no_descriptor(opened: Opened) -> None:
    split = opened()
    payload = split[11].payload
    assert pickle.loads(pickle.dumps(split))[11].payload == payload


def test_tables_come_whole(s3: S3, lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{s3.port}")
    for number, has_payload in enumerate((False, True)):
        folder = built(lake, split={"train": 1.0}, with_payload=has_payload)
        remote = Remote(s3.config(f"sets/{tmp_path.name}-{number}"))
        for path in folder.rglob("*"):
            if path.is_file():
                remote.put(str(path.relative_to(folder)), path)
        far = open_set(f"s3://lake/sets/{tmp_path.name}-{number}", cache=tmp_path / "cache")
        here = open_set(folder)
        assert far.to_arrow(["brightness"]) == here.to_arrow(["brightness"])
        found, wanted = (split.numpy(8, columns=["brightness"])[0]["brightness"] for split in (far, here))
        assert np.array_equal(found, wanted)


def test_ranges_that_lie_near_each_other_are_one_request() -> None:
    starts = np.array([0, 100, 200_000, 400_000])
    assert merged_ranges(starts, starts + 50) == [(0, 150), (200_000, 200_050), (400_000, 400_050)]
    large = np.arange(4) * 10_000_000
    assert merged_ranges(large, large + 10_000_000) == [(at, at + 10_000_000) for at in large.tolist()]


def test_windows_in_a_bucket_are_those_of_the_folder(
    s3: S3, driven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chunks of a Zarr set come through the cache as shards do, and an epoch of them stops and goes on elsewhere."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{s3.port}")
    folder = windows_built(driven)
    remote = Remote(s3.config(f"sets/{tmp_path.name}"))
    for path in folder.rglob("*"):
        if path.is_file():
            remote.put(str(path.relative_to(folder)), path)
    far, here = open_set(f"s3://lake/sets/{tmp_path.name}", cache=tmp_path / "cache"), open_set(folder)
    for name, values in here.arrays(range(len(here))).items():
        assert np.array_equal(far.arrays(range(len(here)))[name], values, equal_nan=values.dtype.kind == "f")
    epoch = far.numpy(7, seed=3)
    first = [epoch[number]["index"] for number in range(3)]
    rest = [batch["index"] for batch in here.numpy(7, epoch=epoch.state_after(3))]
    assert sorted(np.concatenate(first + rest).tolist()) == list(range(len(here)))
