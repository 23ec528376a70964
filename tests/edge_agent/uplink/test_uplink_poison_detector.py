"""Who makes the other side hang up: decided over made-up links, where what is poison and how often the link breaks are known."""

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge_agent.uplink.poison import CAREFUL_AFTER, MIN_FAILED_PROBES, PoisonDetector
from schemas.ids import StreamName

ALPHA, BETA = StreamName("alpha"), StreamName("beta")
_RECONNECT_S = 0.3


@dataclass
class Link:
    """Envelopes in order, an answer after `answer_s`, and a link that breaks by itself after a random time."""

    poison: frozenset[int]
    count: int
    seed: int
    answer_s: float = 0.05
    mean_life_s: float = float("inf")
    window: int = 20
    streams: tuple[StreamName, ...] = (ALPHA,)
    now_s: float = 0.0
    connections: int = 0
    waiting: list[int] = field(default_factory=list)
    parked: set[int] = field(default_factory=set)
    paused: set[StreamName] = field(default_factory=set)
    passed: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.detector = PoisonDetector(self.random.random)
        self.waiting = list(range(self.count))

    def stream(self, id_: int) -> StreamName:
        return self.streams[id_ % len(self.streams)]

    def run(self, connections: int) -> None:
        while self.connections < connections and (set(self.waiting) - self._left_out() or self.detector.is_careful):
            self.connections += 1
            self._connection()

    def _left_out(self) -> set[int]:
        left_out = self.detector.left_out
        return {id_ for id_ in self.waiting if self.stream(id_) in left_out} if left_out else set()

    def _connection(self) -> None:
        self.now_s += _RECONNECT_S
        life_s = self.random.expovariate(1 / self.mean_life_s) if self.mean_life_s < float("inf") else float("inf")
        ends_s = self.now_s + life_s
        self.detector.connected(self.now_s)
        self.now_s += self.answer_s
        if self.now_s < ends_s:
            self.detector.answered()
        while True:
            if self.now_s >= ends_s:
                return self._end([])
            batch = self._next()
            if not batch:
                assert self.now_s < 1e4, "it waits permanently"
                if not self.detector.is_careful:
                    return self._end([], by_peer=False)
                self.now_s += 0.1
                continue
            for id_ in batch:
                self.detector.sent(id_, self.now_s)
            killer = next((id_ for id_ in batch if id_ in self.poison), None)
            self.now_s = min(ends_s, self.now_s + self.answer_s)
            answered = [] if self.now_s >= ends_s else batch if killer is None else batch[: batch.index(killer)]
            for id_ in answered:
                self.waiting.remove(id_)
                self.passed.add(id_)
                self.detector.passed(id_, self.stream(id_), self.now_s)
            if self.now_s >= ends_s or killer is not None:
                return self._end(batch[len(answered) :])

    def _next(self) -> list[int]:
        probe = self.detector.probe(self.now_s)
        if probe is not None:
            return [probe]
        not_free = self.detector.held | self._left_out()
        free = [id_ for id_ in self.waiting if id_ not in not_free]
        if self.detector.is_careful:
            if not free:
                self.detector.nothing_waits()
            return free[:1] if self.detector.may_send_others() else []
        return free[: self.window]

    def _end(self, under_way: list[int], *, by_peer: bool = True) -> None:
        actions = self.detector.ended([(id_, self.stream(id_)) for id_ in under_way], self.now_s, is_by_peer=by_peer)
        self.parked |= set(actions.park)
        self.paused |= set(actions.pause)
        self.waiting = [id_ for id_ in self.waiting if id_ not in self.parked]


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**32),
    st.frozensets(st.integers(0, 49), max_size=3),
    st.floats(0.005, 1.0),
    st.integers(1, 40),
)
@example(0, frozenset({0}), 0.05, 20)
def test_on_a_sound_link_the_poison_and_nothing_else_is_found_and_all_else_passes(
    seed: int, poison: frozenset[int], answer_s: float, window: int
) -> None:
    # Every second stream is free of poison, so that a stream is never poison as a whole.
    link = Link(frozenset(2 * id_ for id_ in poison), 100, seed, answer_s=answer_s, window=window, streams=(ALPHA, BETA))
    link.run(400)
    assert link.passed == set(range(100)) - link.poison - {id_ for id_ in link.waiting if link.stream(id_) in link.paused}
    assert link.parked <= link.poison
    assert link.parked == link.poison or ALPHA in link.paused
    assert not link.detector.is_careful


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.02, 0.3), st.floats(0.1, 5.0), st.integers(1, 40))
def test_a_link_that_only_breaks_parks_nothing_however_often_it_does(
    seed: int, answer_s: float, mean_life_s: float, window: int
) -> None:
    link = Link(frozenset(), 60, seed, answer_s=answer_s, mean_life_s=mean_life_s, window=window, streams=(ALPHA, BETA))
    link.run(100)
    assert not link.parked
    assert not link.paused


@pytest.mark.parametrize("seed", range(5))
def test_poison_is_found_on_a_link_that_also_breaks(seed: int) -> None:
    link = Link(frozenset({5}), 60, seed, answer_s=0.02, mean_life_s=4.0)
    link.run(400)
    assert link.parked == {5}
    assert link.passed == set(range(60)) - {5}


@pytest.mark.parametrize("seed", range(5))
def test_a_stream_that_is_unwanted_as_a_whole_waits_as_a_whole_and_the_other_passes(seed: int) -> None:
    link = Link(frozenset(range(0, 200, 2)), 200, seed, streams=(ALPHA, BETA))
    link.run(60)
    assert link.paused == {ALPHA}
    assert link.passed == set(range(1, 200, 2))
    assert len(link.parked) <= 1
    assert link.connections < 30
    (probe,) = link.detector.held
    link.detector.retry_paused(link.now_s + 10_000)
    assert link.detector.is_careful
    link.detector.passed(probe, ALPHA, link.now_s)
    assert not link.detector.left_out


def test_where_nothing_passes_nothing_is_parked_and_no_stream_waits() -> None:
    link = Link(frozenset(range(20)), 20, 1, streams=(ALPHA, BETA))
    link.run(200)
    assert not link.parked
    assert not link.paused


def test_poison_costs_a_handful_of_connections() -> None:
    link = Link(frozenset({7}), 50, 1)
    link.run(100)
    assert link.parked == {7}
    assert link.connections <= CAREFUL_AFTER + MIN_FAILED_PROBES + 5


def test_an_end_that_the_other_side_explains_or_did_not_make_accuses_nobody() -> None:
    detector = PoisonDetector(lambda: 0.5)
    for _ in range(10):
        detector.connected(0.0)
        detector.sent(1, 0.0)
        detector.ended([(1, ALPHA)], 1.0, is_by_peer=False)
    assert not detector.is_careful
