"""Sets mixed by weight, and orders by blocks: proportions as they should be, every sample exactly once, exact states."""

import pickle
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import RefusedError
from pipelines.training.mix import MixedSets, mix_sets, parts_of
from pipelines.training.open import TrainingSet, open_set
from pipelines.training.order import EpochOrder, Shuffle, Tail
from pipelines.training.permutation import Permutation
from pipelines.training.seeded_orders import WINDOW_SHARDS, BlockPermutation, MixedOrder
from tests.pipelines.training.test_set_build import built

SEEDS = st.integers(0, 2**63)


def positions(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.int64)


def mixed(sizes: list[int], weights: list[float], count: int, epoch: int = 0) -> MixedOrder:
    return MixedOrder(
        tuple(sizes), parts_of(weights), count, 7, epoch, lambda source, own: Permutation(sizes[source], source, own)
    )


@given(st.lists(st.integers(0, 40), min_size=1, max_size=30), SEEDS, st.integers(0, 5))
def test_an_order_by_blocks_gives_every_sample_once(rows: list[int], seed: int, epoch: int) -> None:
    order = BlockPermutation(tuple(rows), seed, epoch)
    assert sorted(order.at(positions(order.count)).tolist()) == list(range(sum(rows)))


@given(st.lists(st.integers(1, 40), min_size=9, max_size=30), SEEDS)
def test_an_order_by_blocks_stays_in_four_shards_at_a_time(rows: list[int], seed: int) -> None:
    order = BlockPermutation(tuple(rows), seed)
    shards = np.searchsorted(np.cumsum(rows), order.at(positions(order.count)), side="right").tolist()
    changes = list(dict.fromkeys(shards))
    for low in range(0, len(changes), WINDOW_SHARDS):
        window = set(changes[low : low + WINDOW_SHARDS])
        places = [at for at, shard in enumerate(shards) if shard in window]
        assert places == list(range(places[0], places[-1] + 1))


def test_an_order_by_blocks_means_the_same_for_ever() -> None:
    order = BlockPermutation((3, 3, 3, 3, 3), 1, 2).at(positions(15))
    assert order.tolist() == [
        0,
        9,
        2,
        6,
        10,
        14,
        13,
        8,
        7,
        12,
        11,
        1,
        5,
        4,
        3,
    ]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 60), st.floats(0.05, 1)), min_size=1, max_size=4), st.data())
def test_any_ranks_and_stops_give_each_sample_of_a_set_once_before_any_again(
    sets: list[tuple[int, float]], data: st.DataObject
) -> None:
    sizes, weights = [size for size, _ in sets], [weight for _, weight in sets]
    count, position, seen = data.draw(st.integers(1, 1_500)), 0, []
    while position < count:
        world, taken = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 400))
        ranks = [EpochOrder(mixed(sizes, weights, count), rank, world, position, Tail.UNEVEN) for rank in range(world)]
        for rank in ranks:
            seen += rank.part(0, min(taken, len(rank))).tolist()
        position = ranks[0].position_after(taken)
    assert len(seen) == count
    starts = np.concatenate(([0], np.cumsum(sizes)))
    for source, size in enumerate(sizes):
        times = Counter(index for index in seen if starts[source] <= index < starts[source + 1])
        assert len(times) == min(size, sum(times.values()))
        assert max(times.values(), default=0) - (min(times.values()) if len(times) == size else 0) <= 1


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=6), SEEDS)
def test_of_each_thousand_samples_every_set_gives_its_share(weights: list[float], seed: int) -> None:
    sizes = [50 + number for number in range(len(weights))]
    order = mixed(sizes, weights, 3_000)
    starts = np.cumsum(sizes)
    for low in range(0, 3_000, 1_000):
        sources = np.searchsorted(starts, order.at(low + positions(1_000)), side="right")
        assert tuple(np.bincount(sources, minlength=len(weights)).tolist()) == order.parts
    for part, weight in zip(order.parts, weights, strict=True):
        assert abs(part - weight / sum(weights) * 1_000) < 1


def test_an_epoch_of_the_mix_goes_on_where_the_one_before_ended() -> None:
    whole = mixed([30, 11], [0.7, 0.3], 400).at(positions(400))
    halves = [mixed([30, 11], [0.7, 0.3], 200, epoch).at(positions(200)) for epoch in range(2)]
    assert np.concatenate(halves).tolist() == whole.tolist()


@pytest.fixture
def halves(lake: Path) -> tuple[TrainingSet, TrainingSet]:
    folder = built(lake, split={"train": 0.5, "test": 0.5})
    return open_set(folder), open_set(folder, "test").filter("brightness > 10")


def test_mixed_batches_carry_the_samples_of_both_sets(halves: tuple[TrainingSet, TrainingSet]) -> None:
    both = mix_sets(halves, [3, 1])
    seen: Counter[int] = Counter()
    for batch in both.numpy(50, seed=2, columns=["brightness", "label"]):
        for at, (source, index) in enumerate(zip(batch["source"].tolist(), batch["index"].tolist(), strict=True)):
            row = open_set(halves[source].folder, halves[source].split)[index]
            assert (batch["payload"][at], batch["brightness"][at], batch["label"][at]) == (
                row.payload, row["brightness"], row["label"],
            )  # fmt: skip
            seen[source] += 1
    assert seen.total() == len(both)
    assert seen[0] == 3 * seen[1]


def test_a_mix_stopped_anywhere_goes_on_with_other_ranks(halves: tuple[TrainingSet, TrainingSet]) -> None:
    both = mix_sets(halves, samples=300)
    whole = [sample["seq"] for sample in both.shuffled(5)]
    epoch = both.shuffled(5)
    seen = [sample["seq"] for sample in islice(epoch, 77)]
    rest = [[sample["seq"] for sample in both.resume(epoch.state(), rank=rank, world=2, tail="uneven")] for rank in range(2)]
    assert seen == whole[:77]
    assert [rest[at % 2][at // 2] for at in range(300 - 77)] == whole[77:]


@pytest.mark.parametrize("shuffle", ["full", "block"])
def test_an_order_of_a_mix_is_the_same_in_another_process(halves: tuple[TrainingSet, TrainingSet], shuffle: Shuffle) -> None:
    order = mix_sets(halves, [3, 1], samples=50).order(7, 2, shuffle)
    assert pickle.loads(pickle.dumps(order)).at(positions(50)).tolist() == order.at(positions(50)).tolist()  # our own


def test_by_default_every_sample_comes_in_one_epoch(halves: tuple[TrainingSet, TrainingSet]) -> None:
    both = mix_sets(halves, [1, 1])
    seen = {(batch["source"][at], batch["index"][at]) for batch in both.numpy(500) for at in range(len(batch["index"]))}
    assert len(seen) == sum(map(len, halves))


@pytest.mark.parametrize("weights", [[1], [1, 0], [1, -1], [1, float("nan")], [1, 1e-9]])
def test_weights_that_cannot_be_are_refused(halves: tuple[TrainingSet, TrainingSet], weights: list[float]) -> None:
    with pytest.raises(RefusedError, match="mix: "):
        mix_sets(halves, weights)


def test_a_state_of_other_weights_is_refused(halves: tuple[TrainingSet, TrainingSet]) -> None:
    state = mix_sets(halves, [1, 1]).shuffled(1).state()
    with pytest.raises(RefusedError, match="another set"):
        mix_sets(halves, [1, 2]).resume(state)


def test_an_empty_set_cannot_be_mixed(halves: tuple[TrainingSet, TrainingSet]) -> None:
    with pytest.raises(RefusedError, match="without samples"):
        MixedSets([halves[0].filter("brightness > 1000")], [1], 10)
