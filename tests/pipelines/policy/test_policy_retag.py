"""Tagging history again: the same tags as a run gives, one new version, nothing else written, killed and undone at will."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, WriterProperties, write_deltalake
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import CorruptLakeError, NotFoundError, RefusedError
from pipelines.lake.delta_log import KeepLog
from pipelines.lake.files import write_table_file
from pipelines.lake.lake import lake_at
from pipelines.lake.splice import splice_columns
from pipelines.lake.thrift_compact import ThriftError, decode_struct, encode_struct
from pipelines.maintenance.log_trim import trim_log
from pipelines.policy.engine import Tagger
from pipelines.policy.retag import RuleTagger, retag_stream, undo_retag
from schemas.contract import builtin_contract
from schemas.policy import Policy, Rule

CONTRACT = builtin_contract("vehicle_telemetry")
STREAM = "vehicle_telemetry"
OLD = Policy("drive", (STREAM,), (Rule("moving", "speed_mps > 1"),))
NEW = Policy(
    "drive", (STREAM,), (Rule("fast", "speed_mps > 20"), Rule("turning", "abs(yaw_rate_dps) > 8"), Rule("fast", "seq = 5"))
)
Commit = Callable[..., Path]


def tagger(*policies: Policy) -> RuleTagger:
    return RuleTagger(Tagger.compile(policies, CONTRACT))


def rows(root: Path, version: int | None = None) -> pa.Table:
    table = DeltaTable(root / "streams" / STREAM, version=version)
    return pa.table(table.to_pyarrow_table()).sort_by("seq")


def words(lists: pa.ChunkedArray) -> set[str]:
    return {word for row in lists.to_pylist() for word in row}


def files_below(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_every_row_gets_the_tags_that_a_run_would_give_it_and_keeps_its_other_columns(commit_rows: Commit) -> None:
    for run in (1, 2, 3):
        root = commit_rows(run, policies=(OLD,))
    before = rows(root)
    done = retag_stream(lake_at(root), STREAM, [NEW], tagger(NEW))
    after = rows(root)
    assert (done.rows, done.files, done.after) == (3_000, 3, done.before + 1)
    tags, sources = Tagger.compile([NEW], CONTRACT).tag(before)
    assert after.column("tags").to_pylist() == tags.to_pylist()
    assert after.column("tag_rules").to_pylist() == sources.to_pylist()
    kept = [name for name in before.column_names if name not in ("tags", "tag_rules")]
    assert after.select(kept).equals(before.select(kept))


def test_not_a_byte_is_written_outside_the_stream_s_narrow_table(commit_rows: Commit) -> None:
    root = commit_rows(1)
    payload = root / "payload" / STREAM / "000000000001-0.parquet"
    payload.parent.mkdir(parents=True)
    payload.write_bytes(b"payload" * 1_000)
    (root / "objects").mkdir()
    (root / "objects" / "ab").write_bytes(b"x" * 100)
    before = files_below(root)
    retag_stream(lake_at(root), STREAM, [NEW], tagger(NEW))
    after = files_below(root)
    assert {path: after[path] for path in before} == before
    new = {path.relative_to(root).parts[0] for path in after.keys() - before.keys()}
    assert new <= {"streams", "policies"}
    assert sum(after[path][0] for path in after.keys() - before.keys() if path.is_relative_to(root / "payload")) == 0


def test_the_old_tags_stay_readable_as_the_version_before_and_undo_brings_them_back(commit_rows: Commit) -> None:
    root = commit_rows(1, policies=(OLD,))
    before = rows(root)
    done = retag_stream(lake_at(root), STREAM, [NEW], tagger(NEW))
    assert rows(root, done.before).equals(before)
    commit_rows(2, policies=(NEW,))
    undone = undo_retag(lake_at(root), STREAM)
    table = rows(root)
    assert table.slice(0, 1_000).equals(before)
    assert table.num_rows == 2_000
    assert words(table.slice(1_000).column("tag_rules")) == {NEW.label}
    assert undone.reused == 1
    with pytest.raises(NotFoundError, match="no retag"):
        undo_retag(lake_at(root), STREAM)


def test_a_retag_is_undone_although_the_log_has_been_cut_behind_it(commit_rows: Commit) -> None:
    for run in (1, 2):
        root = commit_rows(run, policies=(OLD,))
    before = rows(root)
    done = retag_stream(lake_at(root), STREAM, [NEW], tagger(NEW))
    for run in range(3, 13):
        commit_rows(run, policies=(NEW,))
    now_s = time.time() + 1
    assert trim_log(lake_at(root), f"streams/{STREAM}", KeepLog(168 * 3_600, 3, 0), now_s) is not None
    assert len(list((root / "streams" / STREAM / "_delta_log").glob("*.json"))) == 4
    assert rows(root, done.before).equals(before)
    undo_retag(lake_at(root), STREAM)
    assert rows(root).slice(0, before.num_rows).equals(before)
    trim_log(lake_at(root), f"streams/{STREAM}", KeepLog(0, 3, 0), now_s + 1)
    with pytest.raises(NotFoundError, match="no retag"):
        undo_retag(lake_at(root), STREAM)


def test_ingest_goes_on_after_a_retag_as_if_nothing_had_happened(commit_rows: Commit) -> None:
    root = commit_rows(1)
    retag_stream(lake_at(root), STREAM, [NEW], tagger(NEW))
    assert DeltaTable(root / "streams" / STREAM).transaction_version("ingest") == 1
    commit_rows(1)
    commit_rows(2)
    assert rows(root).num_rows == 2_000


def test_a_run_that_commits_meanwhile_is_neither_lost_nor_left_untagged(commit_rows: Commit) -> None:
    root = commit_rows(1)
    judged = tagger(NEW)

    class Interrupted:
        columns = judged.columns
        waiting = True

        def tag(self, table: pa.Table) -> pa.Table:
            if self.waiting:
                Interrupted.waiting = False
                commit_rows(2)
            return judged.tag(table)

    done = retag_stream(lake_at(root), STREAM, [NEW], Interrupted())
    assert (done.rows, done.reused) == (2_000, 1)
    table = rows(root)
    assert table.column("tags").to_pylist() == Tagger.compile([NEW], CONTRACT).tag(table)[0].to_pylist()


def test_tagging_by_the_same_rules_again_does_nothing(commit_rows: Commit) -> None:
    root = commit_rows(1)
    first = retag_stream(lake_at(root), STREAM, [NEW], tagger(NEW))
    again = retag_stream(lake_at(root), STREAM, [NEW], tagger(NEW))
    assert (again.before, again.after, again.rows) == (first.after, first.after, 0)
    commit_rows(2)
    third = retag_stream(lake_at(root), STREAM, [NEW], tagger(NEW))
    assert (third.files, third.reused) == (2, 1)


def test_progress_counts_every_row_once(commit_rows: Commit) -> None:
    commit_rows(1, 300)
    root = commit_rows(2, 500)
    steps: list[tuple[int, int]] = []
    retag_stream(lake_at(root), STREAM, [NEW], tagger(NEW), progress=lambda done, total: steps.append((done, total)))
    assert steps[0] == (0, 800)
    assert steps[-1] == (800, 800)
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)


KILLED = """
import os, signal, sys
from pathlib import Path
from pipelines.lake.lake import lake_at
from pipelines.policy.engine import Tagger
from pipelines.policy.retag import retag_stream
from pipelines.policy.retag import RuleTagger
from pipelines.maintenance.log_trim import trim_log
from schemas.contract import builtin_contract
from schemas.policy import Policy, Rule
import pipelines.lake.splice as splice

rules = (Rule("fast", "speed_mps > 20"), Rule("turning", "abs(yaw_rate_dps) > 8"), Rule("fast", "seq = 5"))
new = Policy("drive", ("vehicle_telemetry",), rules)
steps = iter(range(100))
check = splice._check
def dies(*arguments):
    if next(steps) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    check(*arguments)
splice._check = dies
tagger = RuleTagger(Tagger.compile([new], builtin_contract("vehicle_telemetry")))
retag_stream(lake_at(Path(sys.argv[1])), "vehicle_telemetry", [new], tagger, workers=1)
"""


def test_a_retag_that_was_killed_is_taken_up_where_it_stopped(commit_rows: Commit) -> None:
    for run in (1, 2, 3):
        root = commit_rows(run, policies=(OLD,))
    killed = subprocess.run([sys.executable, "-c", KILLED, str(root), "2"], check=False)
    assert killed.returncode == -9
    table = root / "streams" / STREAM
    assert len(list(table.glob("retag-*.parquet"))) == 2
    assert len(list(table.glob(".retag-*.tmp"))) == 1
    assert words(rows(root).column("tags")) == {"moving"}
    done = retag_stream(lake_at(root), STREAM, [NEW], tagger(NEW))
    assert (done.reused, done.rows) == (2, 3_000)
    assert not list(table.glob(".retag-*.tmp"))
    assert words(rows(root).column("tags")) == {"fast", "turning"}


def test_two_retags_of_one_stream_do_not_run_at_once(commit_rows: Commit) -> None:
    root = commit_rows(1)
    judged = tagger(NEW)

    class Twice:
        columns = judged.columns

        def tag(self, table: pa.Table) -> pa.Table:
            with pytest.raises(RefusedError, match="another retag"):
                retag_stream(lake_at(root), STREAM, [NEW], judged)
            return judged.tag(table)

    assert retag_stream(lake_at(root), STREAM, [NEW], Twice()).rows == 1_000


def test_a_stream_that_does_not_exist_is_named(commit_rows: Commit) -> None:
    root = commit_rows(1)
    with pytest.raises(NotFoundError, match="no stream 'nothing'"):
        retag_stream(lake_at(root), "nothing", [NEW], tagger(NEW))


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    words=st.lists(st.text(max_size=4), min_size=1, max_size=4),
    seed=st.integers(0, 1_000),
)
@settings(max_examples=25, deadline=None)
def test_any_reader_finds_the_new_columns_and_the_others_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], words: list[str], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("splice")
    pick, count = np.random.default_rng(seed), sum(sizes)
    lists = [list(pick.choice(words, pick.integers(0, 3))) for _ in range(count)]
    plain = pa.table({
        "a": pa.array(pick.normal(size=count), mask=pick.random(count) < 0.3),
        "text": pa.array(pick.choice(words, count).tolist(), pa.string()),
        "tags": pa.array([[] for _ in range(count)], pa.list_(pa.string())),
        "z": pa.array(range(count), pa.int64()),
    })  # fmt: skip
    source, target = folder / "a.parquet", folder / "b.parquet"
    with pq.ParquetWriter(source, plain.schema, write_page_index=True) as writer:
        at = 0
        for size in sizes:
            writer.write_table(plain.slice(at, size))
            at += size
    fresh = pa.table({"tags": pa.array(lists, pa.list_(pa.string()))})
    assert splice_columns(source, target, fresh) == target.stat().st_size
    wanted = plain.set_column(2, "tags", fresh.column(0))
    assert pq.read_table(target, page_checksum_verification=True).equals(wanted)
    assert pl.read_parquet(target).to_arrow().column("z").to_pylist() == wanted.column("z").to_pylist()
    assert duckdb.execute(f"select tags, a from '{target}' order by z").fetchall() == list(  # a path of the test's own
        zip(lists, wanted.column("a").to_pylist(), strict=True)
    )


@pytest.mark.parametrize("rows_in_group", [100, 1_000_000])
def test_a_table_that_another_tool_wrote_is_tagged_anew_too(commit_rows: Commit, tmp_path: Path, rows_in_group: int) -> None:
    ours = rows(commit_rows(1, policies=(OLD,)))
    root = tmp_path / "theirs"
    properties = WriterProperties(max_row_group_size=rows_in_group)
    write_deltalake(root / "streams" / STREAM, ours, writer_properties=properties)
    retag_stream(lake_at(root), STREAM, [NEW], tagger(NEW))
    after = rows(root)
    assert after.column("tags").to_pylist() == Tagger.compile([NEW], CONTRACT).tag(ours)[0].to_pylist()
    kept = [name for name in ours.column_names if name not in ("tags", "tag_rules")]
    assert after.select(kept).equals(ours.select(kept))


def test_new_columns_of_another_length_are_refused_and_leave_nothing_behind(tmp_path: Path) -> None:
    written = write_table_file(lake_at(tmp_path), "t", "a.parquet", pa.table({"tags": pa.array([["x"]], pa.list_(pa.string()))}))
    with pytest.raises(RefusedError, match="2 new values for 1 rows"):
        splice_columns(tmp_path / written.path, tmp_path / "b", pa.table({"tags": pa.array([[], []], pa.list_(pa.string()))}))
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_a_file_cut_short_is_reported_as_such(tmp_path: Path) -> None:
    source = tmp_path / "a.parquet"
    source.write_bytes(b"PAR1 no footer")
    with pytest.raises(CorruptLakeError, match="restore"):
        splice_columns(source, tmp_path / "b", pa.table({"tags": pa.array([], pa.list_(pa.string()))}))


@given(st.binary(max_size=200))
def test_bytes_that_are_no_footer_are_refused_by_name(body: bytes) -> None:
    try:
        tree = decode_struct(body)
    except ThriftError:
        return
    assert decode_struct(encode_struct(tree)) is not None
