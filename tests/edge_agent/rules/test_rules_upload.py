"""Upload budgets: the telling samples first, some by pure chance, and estimates without bias from what was sent."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import msgspec
import numpy as np
import pytest

from edge_agent.rules.rule_filter import RuleFilter
from edge_agent.rules.upload_choice import LEFT_OUT, UploadChoice
from edge_agent.sources.api import SampleBatch, Scalar
from pipelines.contracts.registry import ContractSet
from pipelines.errors import RefusedError
from pipelines.lake.lake import lake_at
from pipelines.policy.edge import edge_uploads, numbered_policy
from pipelines.rollout.evaluation import right_share
from schemas.contract import Column, ColumnType, Contract, builtin_contract
from schemas.edge_policy import EdgeAction, EdgePolicy, EdgeRule, EdgeUpload, UploadScore, decode_edge_policy, encode_edge_policy
from schemas.errors import PolicyDocumentError
from schemas.ids import StreamName
from schemas.policy import policy_from_plain
from tests.edge_agent.rules.test_rules_decide import Book
from tests.fakes.policy_signer import rule

STREAM = "camera_frame"
PLAIN = builtin_contract(StreamName(STREAM))
CONTRACT = msgspec.structs.replace(PLAIN, columns=(*PLAIN.columns, Column("upload_share", ColumnType.FLOAT64)))
FRAME = b"x" * 50_000
MARGIN = EdgeUpload(UploadScore.MARGIN, 5_000_000)


class Hand:
    """A clock moved by hand."""

    def __init__(self) -> None:
        self.at_s = 1_000.0

    def __call__(self) -> float:
        return self.at_s


def frames(scores: Sequence[float | None], first: int = 0, labels: Sequence[str] | None = None) -> SampleBatch:
    columns: dict[str, Sequence[Scalar]] = {
        "predicted_score": list(scores),
        "predicted_label": list(labels or ["ok"] * len(scores)),
    }
    return SampleBatch([first + at for at in range(len(scores))], columns, [FRAME] * len(scores))


@pytest.mark.parametrize(("every_s", "at_once"), [(1.0, 1), (0.2, 1), (60.0, 60)])
def test_an_hours_bytes_keep_the_budget_however_the_samples_come(every_s: float, at_once: int) -> None:
    clock, rng = Hand(), np.random.default_rng(1)
    choice = UploadChoice(MARGIN, "cam-1", STREAM, clock)
    sent, number = [0.0, 0.0], 0
    while clock.at_s < 1_000 + 2 * 3_600:
        chosen = choice(frames([float(score) for score in rng.beta(5, 1, at_once)], number))
        sent[int((clock.at_s - 1_000) // 3_600)] += 50_200 * len(chosen.rows)
        clock.at_s, number = clock.at_s + every_s, number + at_once
    assert min(sent) > 0.85 * 5_000_000
    assert max(sent) < 1.12 * 5_000_000


def test_without_traffic_above_the_budget_everything_is_sent() -> None:
    clock = Hand()
    choice = UploadChoice(MARGIN, "cam-1", STREAM, clock)
    sent = []
    for number in range(60):
        sent += [number] * len(choice(frames([0.5], number)).rows)
        clock.at_s += 60
    assert sent[-50:] == list(range(10, 60))


def test_the_doubtful_are_sent_first_and_the_sure_have_a_chance() -> None:
    clock, rng = Hand(), np.random.default_rng(2)
    choice = UploadChoice(MARGIN, "cam-1", STREAM, clock)
    doubtful, sent, shares = 0, 0, list[float]()
    for number in range(4_000):
        is_doubtful = bool(rng.random() < 0.05)
        chosen = choice(frames([0.5 if is_doubtful else 0.99], number))
        sent, doubtful = sent + len(chosen.rows), doubtful + is_doubtful * len(chosen.rows)
        shares += chosen.shares
        clock.at_s += 1
    assert doubtful > 0.5 * sent
    assert 0 < min(shares) < 0.1
    assert max(shares) <= 1


def test_a_rare_label_and_a_disagreement_are_telling() -> None:
    clock, rng = Hand(), np.random.default_rng(3)
    rare = UploadChoice(EdgeUpload(UploadScore.RARITY, 5_000_000), "cam-1", STREAM, clock)
    sent = list[str]()
    for number in range(3_000):
        label = "odd" if rng.random() < 0.02 else "ok"
        sent += [label] * len(rare(frames([0.9], number, [label])).rows)
        clock.at_s += 1
    assert sent.count("odd") > 0.1 * len(sent)
    other = EdgeUpload(UploadScore.DISAGREEMENT, 1_000_000, other="second_label")
    batch = frames([0.9, 0.9, 0.9])
    batch = SampleBatch(batch.event_time_us, {**batch.columns, "second_label": ["ok", "bad", None]}, batch.payloads)
    chosen = UploadChoice(other, "cam-1", STREAM, clock)(batch)
    assert 1 in chosen.rows
    assert chosen.shares[chosen.rows.index(1)] > 0.5


@pytest.mark.slow
def test_estimates_from_what_was_sent_cover_the_truth_in_ninety_three_of_a_hundred_fleets() -> None:
    covered, means, plain = 0, [], []
    for seed in range(200):
        rng, clock = np.random.default_rng(seed), Hand()
        choice = UploadChoice(EdgeUpload(UploadScore.MARGIN, 10_000_000), f"cam-{seed}", STREAM, clock)
        scores = 1 - rng.beta(0.5, 3.0, 1_500)
        right = rng.random(1_500) < 1 - 0.6 * (1 - scores)
        hits, shares = list[bool](), list[float]()
        for number in range(0, 1_500, 10):
            chosen = choice(frames([float(score) for score in scores[number : number + 10]], number))
            hits += [bool(right[number + row]) for row in chosen.rows]
            shares += chosen.shares
            clock.at_s += 10
        found = right_share(hits, shares)
        truth = 1 - 0.6 * 0.5 / 3.5
        covered += found.low <= truth <= found.high
        means.append(found.share)
        plain.append(sum(hits) / len(hits))
    assert covered >= 186
    assert abs(np.mean(means) - (1 - 0.6 * 0.5 / 3.5)) < 0.01
    assert np.mean(plain) < np.mean(means) - 0.03  # without the chances the model would look worse than it is


# -- among the rules --------------------------------------------------------------------------------------------------


def book(*rules: EdgeRule, upload: EdgeUpload = MARGIN) -> Book:
    found = Book()
    found.policy = EdgePolicy(1, 0, {STREAM: rules}, uploads={STREAM: upload})
    return found


def filtered(policy: Book, batch: SampleBatch, contract: Contract = CONTRACT) -> tuple[list[int], list[float], dict[str, int]]:
    rule_filter = RuleFilter(policy, contract, "cam-1", 100, lambda: 0.0, now_s=Hand())
    done = rule_filter(batch)
    rows = [time for _, group in done.groups for time in group.event_time_us]
    shares = [share for _, group in done.groups for share in cast("list[float]", group.columns.get("upload_share", []))]
    return rows, shares, dict(done.left_out)


def test_what_a_rule_keeps_is_sent_and_what_it_samples_has_both_chances() -> None:
    tiny = EdgeUpload(UploadScore.MARGIN, 1_000)
    rows, shares, left_out = filtered(
        book(rule("keep", STREAM, "predicted_score > 0.9", EdgeAction.KEEP), upload=tiny), frames([0.95] * 40)
    )
    assert (rows, shares, left_out) == (list(range(40)), [1.0] * 40, {})
    rows, shares, left_out = filtered(
        book(rule("some", STREAM, "predicted_score < 2", EdgeAction.SAMPLE, rate=0.5)), frames([0.0] * 40)
    )
    assert 0 < len(rows) < 40
    assert 0.4 < max(shares) <= 0.5
    assert sum(left_out.values()) == 40 - len(rows)
    assert set(left_out) == {"rule:some", LEFT_OUT}


def test_what_the_budget_leaves_out_is_counted() -> None:
    rows, shares, left_out = filtered(book(upload=EdgeUpload(UploadScore.MARGIN, 1_000)), frames([0.9] * 200))
    assert left_out == {LEFT_OUT: 200 - len(rows)}
    assert len(shares) == len(rows) < 60


def test_a_contract_without_the_column_keeps_every_sample_and_says_so() -> None:
    policy = book()
    assert filtered(policy, frames([0.9] * 200), PLAIN)[0] == list(range(200))
    assert "the contract here lacks upload_share; every sample is kept" in policy.suspended[f"{STREAM}/upload"]


@pytest.mark.parametrize(
    "parts",
    [
        {"bytes_per_h": 10},
        {"random_share": 0.0},
        {"random_share": 1.1},
        {"other": "x"},
        {"score": UploadScore.DISAGREEMENT},
    ],
)
def test_a_budget_of_nonsense_is_refused(parts: dict[str, object]) -> None:
    with pytest.raises(PolicyDocumentError, match="upload: "):
        EdgeUpload(**{"score": UploadScore.MARGIN, "bytes_per_h": 1_000_000, **parts})  # type: ignore[arg-type]


def test_a_policys_budget_becomes_a_part_of_the_signed_policy(tmp_path: Path) -> None:

    plain = {"id": "frames", "streams": [STREAM], "upload": {"score": "margin", "bytes_per_h": 5_000_000}}
    policy = policy_from_plain(plain)
    assert policy.has_edge_part
    with pytest.raises(RefusedError, match="lacks upload_share"):
        edge_uploads([policy], ContractSet.load(""))
    lake = lake_at(tmp_path)
    versions = [numbered_policy(lake, {}, 1, uploads=each).version for each in ({STREAM: MARGIN}, {STREAM: MARGIN}, {})]
    assert versions == [1, 1, 2]
    made = EdgePolicy(1, 0, {}, uploads={STREAM: MARGIN})
    assert decode_edge_policy(encode_edge_policy(made)) == made
