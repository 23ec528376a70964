"""Inspect steps in a run: columns next to the others, rules that read them, and a bad picture that is committed all the same."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipelines.commands.policy_lake import LakeSite
from pipelines.inspect.columns import steps_of
from pipelines.inspect.stored import StoredInspector
from pipelines.lake.lake import lake_at
from pipelines.policy.documents import apply_policy, load_policy
from pipelines.policy.engine import Tagger
from pipelines.policy.retag import RuleTagger, retag_stream
from tests.plant.core import Core

POLICY = """
id: look
streams: [camera_frame]
rules:
  - {tag: dark, when: image_luma_mean < 60}
  - {tag: near_duplicate, when: image_burst_index > 0}
  - {tag: broken, when: inspect_errors IS NOT NULL}
  - {tag: long, when: body_bytes > 3}
inspect:
  - {use: image}
  - {use: sizes, file: sizes.py, function: sizes, columns: {body_bytes: int64}}
"""
CODE = """
import os
def sizes(payload):
    if payload == b"die":
        os._exit(1)
    return {"body_bytes": len(payload)}
"""
STREAM = "camera_frame"


def picture(shade: int) -> bytes:
    pixels = np.random.default_rng(shade).integers(0, shade, (4, 4, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
    body = io.BytesIO()
    Image.fromarray(pixels).save(body, "PNG")
    return body.getvalue()


@pytest.fixture
def policy_path(tmp_path: Path) -> Path:
    folder = tmp_path / "policies"
    folder.mkdir()
    (folder / "look.yaml").write_text(POLICY)
    (folder / "sizes.py").write_text(CODE)
    return folder / "look.yaml"


def frames(as_ipc: Callable[..., bytes], bodies: list[bytes]) -> bytes:
    import hashlib

    count = len(bodies)
    times = pa.array(np.arange(count) + 1_790_000_000_000_000).cast(pa.timestamp("us", "UTC"))
    digests = [hashlib.sha256(body).hexdigest() for body in bodies]
    columns = {"event_time": times, "payload": pa.array(bodies, pa.binary()), "payload_sha256": pa.array(digests)}
    return as_ipc(pa.record_batch({**columns, "media_type": pa.array(["image/png"] * count)}))


BODIES = [picture(200), picture(200), picture(30), b"rubbish", b"die"]
TAGS = [["long"], ["near_duplicate", "long"], ["dark", "long"], ["broken", "long"], ["broken"]]


def test_a_run_inspects_tags_and_commits_every_sample(
    core: Core, envelope: Callable[..., Any], as_ipc: Callable[..., bytes], policy_path: Path
) -> None:
    core.config = msgspec.structs.replace(core.config, policies=str(policy_path.parent))
    core.landing.seal([envelope(0, 5, device="cam-1", stream=STREAM, body=frames(as_ipc, BODIES))])
    core.run()
    rows = sorted(core.rows(f"streams/{STREAM}"), key=lambda row: row["seq"])
    assert [row["tags"] for row in rows] == TAGS
    assert rows[0]["image_luma_mean"] > 60
    assert "image: not a picture" in rows[3]["inspect_errors"]
    assert "sizes died" in rows[4]["inspect_errors"]
    assert core.rows("quarantine") == []


def test_rows_from_before_there_was_a_step_are_inspected_by_a_retag(
    core: Core, envelope: Callable[..., Any], as_ipc: Callable[..., bytes], policy_path: Path
) -> None:
    core.landing.seal([envelope(0, 5, device="cam-1", stream=STREAM, body=frames(as_ipc, BODIES))])
    core.run()
    policy = load_policy(policy_path)
    site = LakeSite.open(None, core.root)
    from pipelines.inspect.code import store_code

    store_code(lake_at(core.root), [policy], policy_path.parent)
    apply_policy(lake_at(core.root), policy, "ada", 1)
    fill = StoredInspector(lake_at(core.root), site.contract(STREAM, ()), steps_of([policy], STREAM))
    retag_stream(
        lake_at(core.root), STREAM, [policy], RuleTagger(Tagger.compile([policy], site.contract(STREAM, (policy,))), fill)
    )
    rows = sorted(core.rows(f"streams/{STREAM}"), key=lambda row: row["seq"])
    assert [row["tags"] for row in rows] == TAGS
    core.landing.seal([envelope(5, 5, device="cam-1", stream=STREAM, body=frames(as_ipc, BODIES))])
    core.run()
    rows = sorted(core.rows(f"streams/{STREAM}"), key=lambda row: row["seq"])
    assert [row["tags"] for row in rows[5:]] == TAGS
    assert rows[5]["image_width"] == 32
