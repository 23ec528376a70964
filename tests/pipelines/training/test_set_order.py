"""The order of an epoch: a bijection, dealt out to ranks, resumable anywhere."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import RefusedError
from pipelines.training.order import EpochOrder, EpochState, state_from_bytes
from pipelines.training.permutation import Permutation

SEEDS = st.integers(0, 2**63)
WORD = 2**64 - 1


def scrambled_by_hand(word: int, key: int) -> int:
    word ^= key
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & WORD
    word = (word ^ word >> 27) * 0x94D049BB133111EB & WORD
    return word ^ word >> 31


def index_by_hand(count: int, seed: int, epoch: int, position: int) -> int:
    """The order of the first release, without numpy: eight rounds of a Feistel network, walked until it is within range."""
    bits = (count - 1).bit_length()
    low_bits = bits - bits // 2
    digest = hashlib.blake2b(f"catchment-order-1:{seed}:{epoch}".encode(), digest_size=64).digest()
    keys = [int.from_bytes(digest[at : at + 8], "little") for at in range(0, 64, 8)]
    while True:
        high, low = divmod(position, 1 << low_bits)
        for number, key in enumerate(keys):
            if number % 2 == 0:
                low ^= scrambled_by_hand(high, key) % (1 << low_bits)
            else:
                high ^= scrambled_by_hand(low, key) % (1 << bits - low_bits)
        position = high << low_bits | low
        if position < count:
            return position


@settings(deadline=None)
@given(st.integers(0, 5_000), SEEDS, st.integers(0, 100))
def test_a_permutation_gives_every_index_once(count: int, seed: int, epoch: int) -> None:
    order = Permutation(count, seed, epoch).at(np.arange(count, dtype=np.int64))
    assert sorted(order.tolist()) == list(range(count))


@settings(deadline=None)
@given(st.integers(1, 2**40), SEEDS)
def test_a_permutation_of_any_size_stays_within_it(count: int, seed: int) -> None:
    positions = np.unique(np.linspace(0, count - 1, 50).astype(np.int64))
    order = Permutation(count, seed).at(positions)
    assert order.min() >= 0
    assert order.max() < count
    assert len(set(order.tolist())) == len(positions)


def test_an_order_means_the_same_for_ever() -> None:
    assert Permutation(10, 1, 2).at(np.arange(10, dtype=np.int64)).tolist() == [8, 6, 4, 7, 5, 1, 0, 3, 2, 9]


@pytest.mark.parametrize(
    ("count", "seed", "epoch"),
    [(2, 0, 0), (3, 1, 0), (16, 7, 3), (17, 2**63, 1), (1_000, 5, -1), (2**32 + 1, 3, 0), (2**40, 1, 9), (2**62, 4, 2)],
)
def test_an_order_is_that_of_the_network_written_out_in_whole_numbers(count: int, seed: int, epoch: int) -> None:
    positions = sorted({0, 1, count // 3, count // 2, count - 2, count - 1})
    order = Permutation(count, seed, epoch).at(np.array(positions, np.int64))
    assert order.tolist() == [index_by_hand(count, seed, epoch, position) for position in positions]
    assert order.dtype == np.int64


def test_an_order_is_of_the_first_epoch_unless_another_is_named() -> None:
    assert Permutation(9, 1) == Permutation(9, 1, 0)
    assert repr(Permutation(9, 1)) == "Permutation(count=9, seed=1, epoch=0)"


@pytest.mark.parametrize("count", [0, 1])
def test_at_most_one_element_has_one_order(count: int) -> None:
    order = Permutation(count, 3).at(np.zeros(count, np.int64))
    assert order.tolist() == [0] * count
    assert order.dtype == np.int64


@pytest.mark.parametrize("count", [-1, 2**62 + 1])
def test_a_count_that_no_order_can_have_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=rf"^a permutation of {count} elements; 0\.\.2\^62 is possible$"):
        Permutation(count, 1)


def test_neighbours_are_torn_apart() -> None:
    order = Permutation(100_000, 3).at(np.arange(100_000, dtype=np.int64))
    assert abs(np.corrcoef(np.arange(100_000), order)[0, 1]) < 0.02
    assert (np.abs(np.diff(order)) < 10).mean() < 0.001


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    base, later, other = (Permutation(1_000, s, e).at(np.arange(1_000)).tolist() for s, e in [(1, 0), (1, 1), (2, 0)])
    assert base != later != other != base


@settings(deadline=None)
@given(st.integers(0, 500), SEEDS, st.integers(1, 9), st.integers(0, 500))
def test_the_ranks_share_what_is_left_without_loss_or_repeat(count: int, seed: int, world: int, start: int) -> None:
    start = min(start, count)
    permutation = Permutation(count, seed)
    dealt = [i for rank in range(world) for i in EpochOrder(permutation, rank, world, start).indexes()]
    assert sorted(dealt) == sorted(EpochOrder(permutation, 0, 1, start).indexes())
    assert len(dealt) == count - start


@settings(deadline=None)
@given(st.integers(1, 300), SEEDS, st.data())
def test_stopping_and_going_on_with_other_ranks_reads_each_sample_once(count: int, seed: int, data: st.DataObject) -> None:
    permutation, position, seen = Permutation(count, seed), 0, []
    while position < count:
        world = data.draw(st.integers(1, 5))
        steps = data.draw(st.integers(1, 40))
        orders = [EpochOrder(permutation, rank, world, position) for rank in range(world)]
        seen += [i for order in orders for i, _ in zip(order.indexes(), range(steps), strict=False)]
        position = orders[0].position_after(steps)
    assert sorted(seen) == list(range(count))


def test_a_state_is_small_and_comes_back_equal() -> None:
    state = EpochState("0123456789abcdef", "train", 2**63 - 1, 1_000, 10**12)
    assert len(state.to_bytes()) < 120
    assert state_from_bytes(state.to_bytes()) == state


@given(st.binary(max_size=200))
def test_bytes_that_are_no_state_are_refused(body: bytes) -> None:
    with pytest.raises(RefusedError):
        state_from_bytes(b"\x00" + body)
