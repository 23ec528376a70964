"""The loader for PyTorch, with the real PyTorch. `make test-torch` fetches it into `.torch`; elsewhere these tests skip."""

import sys
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.errors import RefusedError
from pipelines.training.mix import mix_sets
from pipelines.training.open import TrainingSet, open_set
from tests.pipelines.training.test_set_build import built, rot

FETCHED = Path(__file__).resolve().parents[3] / ".torch"


@pytest.fixture(scope="module")
def torch() -> Any:
    if FETCHED.is_dir() and str(FETCHED) not in sys.path:
        # Last, so that what both hold comes from the environment.
        sys.path.append(str(FETCHED))
    try:
        return import_module("torch")
    except ImportError:
        pytest.skip("PyTorch is not here; make test-torch fetches it")


@pytest.fixture
def split(torch: Any, lake: Path) -> TrainingSet:
    return open_set(built(lake, split={"train": 1.0}))


def indexes_of(batches: Any) -> list[int]:
    return [index for batch in batches for index in batch["index"].tolist()]


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_give_the_same_batches_as_none(torch: Any, split: TrainingSet, workers: int) -> None:
    loader = split.torch(16, seed=4, columns=["brightness", "label"], workers=workers)
    batches = list(loader)
    assert len(batches) == len(loader) == 15
    assert sorted(indexes_of(batches)) == list(range(239))
    wanted = list(split.numpy(16, seed=4, columns=["brightness", "label"]))
    for batch, plain in zip(batches, wanted, strict=True):
        assert torch.equal(batch["brightness"], torch.from_numpy(plain["brightness"].copy()))
        assert (batch["payload"], batch["label"]) == (plain["payload"], plain["label"])


def test_a_loader_stopped_anywhere_goes_on_with_other_workers_and_ranks(split: TrainingSet) -> None:
    loader = split.torch(10, seed=4, workers=2)
    first = list(islice(loader, 5))
    state = loader.state_dict()
    rest = []
    for rank in range(3):
        other = split.torch(7, seed=9, workers=rank % 2, rank=rank, world=3, tail="uneven")
        other.load_state_dict(state)
        rest += indexes_of(other)
    assert sorted(indexes_of(first) + rest) == list(range(239))


def test_each_epoch_has_an_order_of_its_own_and_comes_by_itself(split: TrainingSet) -> None:
    loader = split.torch(32, seed=1)
    first, second = indexes_of(loader), indexes_of(loader)
    assert sorted(first) == sorted(second) == list(range(239))
    assert first != second
    loader.set_epoch(0)
    assert indexes_of(loader) == first


def test_pictures_are_decoded_in_the_workers(torch: Any, split: TrainingSet) -> None:
    batches = list(split.torch(32, seed=1, image=(24, 32), workers=2, on_bad="skip"))
    assert all(batch["payload"].dtype == torch.uint8 and tuple(batch["payload"].shape[1:]) == (24, 32, 3) for batch in batches)
    assert np.array_equal(batches[0]["payload"].numpy(), split.numpy(32, seed=1, image=(24, 32), on_bad="skip")[0]["payload"])


def test_a_plain_data_loader_takes_the_set_with_a_list_of_samples(torch: Any, split: TrainingSet) -> None:
    loader = torch.utils.data.DataLoader(split, batch_size=20, collate_fn=list, num_workers=2)
    assert [sample.index for batch in loader for sample in batch] == list(range(239))


def test_an_option_that_the_loader_sets_itself_is_refused(split: TrainingSet, torch: Any) -> None:
    with pytest.raises(RefusedError, match="sampler: the loader sets this itself"):
        split.torch(8, sampler=range(3))
    with pytest.raises(RefusedError, match="shuffle: 'rows' cannot be; give 'full', 'block'"):
        split.torch(8, shuffle="rows")


def test_what_a_worker_compared_is_not_compared_again_in_the_next_epoch(split: TrainingSet) -> None:
    loader = split.torch(16, seed=1, workers=2)
    assert sorted(indexes_of(loader)) == list(range(239))
    index = next(at for at, sample in enumerate(split) if sample.payload)
    rot(split.folder, index)
    assert sorted(indexes_of(loader)) == list(range(239))


def test_a_rotten_payload_ends_the_epoch_in_whichever_process(split: TrainingSet) -> None:
    index = next(at for at, sample in enumerate(open_set(split.folder, check="never")) if sample.payload)
    rot(split.folder, index)
    with pytest.raises(Exception, match="is not the one that was captured"):
        list(split.torch(16, seed=1, workers=2))


def test_sets_that_are_mixed_are_loaded_as_one(split: TrainingSet) -> None:
    both = mix_sets([split.filter("brightness > 20"), split.filter("brightness <= 20")], [3, 1], samples=400)
    loader = both.torch(50, seed=3, workers=2, shuffle="block")
    batches = list(loader)
    assert sum(len(batch["payload"]) for batch in batches) == 400
    for batch in batches:
        assert [split[at].payload for at in batch["index"].tolist()] == batch["payload"]
