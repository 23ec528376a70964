"""Lists, vectors, structs and zoned times from a body to a tagged row of the lake."""

import json
import random
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from pipelines.ingest import tabulate
from pipelines.policy.guard import Budget, SandboxedTagger, name_of
from schemas.contract import Contract
from schemas.policy import Policy
from tests.plant.core import AsIpc, Core, MakeEnvelope

DOCUMENT = """
apiVersion: v3.2.0
kind: DataContract
id: urn:test:detections
version: 1.0.0
status: active
schema:
- name: detections
  logicalType: object
  properties:
  - {name: labels, logicalType: array, items: {logicalType: string}, logicalTypeOptions: {maxItems: 3}}
  - {name: scores, logicalType: array, items: {logicalType: number, physicalType: float32}}
  - {name: embedding, logicalType: vector, logicalTypeOptions: {dimensions: 2, elementType: float32}}
  - {name: seen_at, logicalType: timestamp, logicalTypeOptions: {timezone: true, defaultTimezone: Europe/Berlin}}
  - name: place
    logicalType: object
    properties:
    - {name: lat, logicalType: number, required: true, logicalTypeOptions: {minimum: -90, maximum: 90}}
    - {name: lon, logicalType: number}
  - name: boxes
    logicalType: array
    items:
      logicalType: object
      properties:
      - {name: label, logicalType: string, required: true}
      - {name: corners, logicalType: array, items: {logicalType: number}}
"""
POLICY = """
id: persons
streams: [detections]
rules:
  - {tag: person, when: "list_any(labels, 'person', 'rider')"}
  - {tag: sure, when: 'list_get(scores, 1) > 0.8'}
  - {tag: munich, when: "geo_distance_m(place.lat, place.lon, 48.137, 11.575) < 10000"}
  - {tag: at_night, when: "time_between(seen_at, '22:00', '06:00', 'Europe/Berlin')"}
"""
ROWS: list[dict[str, Any]] = [
    {"labels": ["car", "person"], "scores": [0.9, 0.2], "embedding": [1.0, 2.0], "place": {"lat": 48.14, "lon": 11.57}},
    {"labels": [], "scores": None, "seen_at": "2026-07-01T21:30:00Z", "place": {"lat": 52.5}},
    {"labels": ["a", "b", "c", "d"]},
    {"embedding": [1.0]},
    {"place": {"lat": 91.0}},
    {"place": {"latitude": 1.0}},
    {"scores": ["high"]},
]


@pytest.fixture
def nested(core: Core, tmp_path: Path) -> Any:
    for name, file, text in (("contracts", "detections.odcs.yaml", DOCUMENT), ("policies", "persons.yaml", POLICY)):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(text)
    core.config = msgspec.structs.replace(core.config, contracts=str(tmp_path / "contracts"), policies=str(tmp_path / "policies"))
    return core


def test_json_rows_with_nested_values_are_checked_tagged_and_kept(nested: Core, envelope: MakeEnvelope) -> None:
    body = json.dumps([{"event_time": "2026-09-01T00:00:00Z", **row} for row in ROWS]).encode()
    nested.landing.seal([envelope(0, len(ROWS), stream="detections", body=body, content_type="application/json")])
    loop = nested.run()
    first, second = nested.rows("streams/detections")
    assert (first["labels"], first["embedding"], first["place"]) == (["car", "person"], [1.0, 2.0], {"lat": 48.14, "lon": 11.57})
    assert (first["tags"], second["tags"]) == (["person", "sure", "munich"], ["at_night"])
    reasons = sorted(row["reason"] for row in nested.rows("quarantine"))
    assert [word in line for word, line in zip(("embedding: a vector of 2", "labels: longer than 3 items", "place.lat: above",
            "place: unknown field", "scores: a number is needed"), reasons, strict=True)] == [True] * 5, reasons  # fmt: skip
    assert not loop.ledger.unbalanced()


def test_arrow_batches_with_wider_nested_types_become_the_contracts(nested: Core, envelope: MakeEnvelope, as_ipc: AsIpc) -> None:
    times = pa.array([1_790_000_000_000_000] * 2).cast(pa.timestamp("us", "UTC"))
    batch = pa.record_batch({
        "event_time": times,
        "labels": pa.array([["rider"], None], pa.large_list(pa.large_string())),
        "scores": pa.array([[1, 2], []], pa.list_(pa.int16())),
        "embedding": pa.array([[0.5, float("nan")], [1.0, 2.0]], pa.list_(pa.float64(), 2)),
        "seen_at": times.cast(pa.timestamp("ns", "America/New_York")),
        "place": pa.array([{"lon": 11.5, "lat": 48.1}, {"lon": 1.0, "lat": 2.0}]),
    })  # fmt: skip
    nested.landing.seal([envelope(0, 2, stream="detections", body=as_ipc(batch))])
    nested.run()
    (row,) = nested.rows("streams/detections")
    assert (row["labels"], row["scores"], row["embedding"], row["place"]) == (None, [], [1.0, 2.0], {"lat": 2.0, "lon": 1.0})
    assert [each["reason"] for each in nested.rows("quarantine")] == ["embedding: NaN or infinite"]
    fields = {field.name: field.type for field in DeltaTable(nested.root / "streams/detections").schema().fields}
    assert str(fields["embedding"]).startswith("ArrayType")
    assert str(fields["place"]).startswith("StructType")


@pytest.mark.slow
def test_a_policy_over_its_budget_is_suspended_and_the_run_commits_every_row(
    nested: Core, envelope: MakeEnvelope, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "policies" / "slow.yaml").write_text(
        "id: slow\nstreams: [detections]\nrules:\n"
        "  - {tag: slow, when: \"matches(list_get(labels, 1), '(?:a.{0,40}b.{0,40}){20}c')\"}\n"
    )
    made: list[SandboxedTagger] = []

    @lru_cache
    def tagger(_root: Path, policies: bytes, contract: Contract) -> SandboxedTagger:
        decoded = msgspec.json.decode(policies, type=tuple[Policy, ...])
        made.append(SandboxedTagger.compile(decoded, contract, Budget(start_ms=1_000, us_per_row=0)))
        return made[-1]

    monkeypatch.setattr(tabulate, "kept_tagger", tagger)
    text = "".join(random.Random(1).choices("ab", k=200_000))
    rows = [{"event_time": "2026-09-01T00:00:00Z", "labels": labels} for labels in ([text], ["person"])]
    for first in (0, 2):
        body = json.dumps(rows).encode()
        nested.landing.seal([envelope(first, 2, stream="detections", body=body, content_type="application/json")])
        nested.run()
    assert [row["tags"] for row in nested.rows("streams/detections")] == [[], ["person"]] * 2
    assert [list(each.suspended) for each in made] == [[name_of(policy) for policy, _ in each.risky] for each in made]
    for each in made:
        each.close()


def test_boxes_are_checked_tagged_and_kept_object_by_object(nested: Core, envelope: MakeEnvelope, tmp_path: Path) -> None:
    rule = "  - {tag: two_cars, when: \"count_items(boxes, item.label = 'car' AND list_length(item.corners) = 4) = 2\"}\n"
    (tmp_path / "policies" / "persons.yaml").write_text(POLICY + rule)
    car: dict[str, Any] = {"label": "car", "corners": [0.0, 0.5, 4.0, 4.5]}
    rows = [{"boxes": [car, car, {"label": "person"}]}, {"boxes": [car, {"label": "car"}]}, {"boxes": [{"corners": [1.0]}]}, {}]
    body = json.dumps([{"event_time": "2026-09-01T00:00:00Z", **row} for row in rows]).encode()
    nested.landing.seal([envelope(0, len(rows), stream="detections", body=body, content_type="application/json")])
    nested.run()
    kept = nested.rows("streams/detections")
    assert [row["tags"] for row in kept] == [["two_cars"], [], []]
    assert kept[0]["boxes"] == [car, car, {"label": "person", "corners": None}]
    assert [row["reason"] for row in nested.rows("quarantine")] == ["boxes[].label: required, but null"]
