"""Values of private columns lie in the rows themselves and nowhere else in a lake: every byte of it is looked at."""

import io
import json
import struct
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from catchment.runtime.clock import SystemClock
from pipelines.contracts.arrow import private_columns
from pipelines.contracts.check import reasons
from pipelines.contracts.odcs import to_odcs
from pipelines.ingest.backfill import backfill, segments_of
from pipelines.ingest.loop import IN_PROCESS
from pipelines.lake.compact import compact_all
from pipelines.lake.lake import lake_at
from pipelines.lake.rollup import read_rollup
from pipelines.lake.table import open_table
from pipelines.maintenance.maintain import maintain
from pipelines.maintenance.vacuum import Keep
from pipelines.policy.contact_sheet import Sheet
from pipelines.policy.engine import Tagger
from pipelines.policy.preview import Preview
from pipelines.policy.retag import RuleTagger, retag_stream
from pipelines.quality.store import keep_quality, read_quality
from schemas.contract import Column, ColumnType, Contract, PiiClass
from schemas.policy import Policy, Rule
from tests.plant.core import AsIpc, Core, MakeEnvelope

STREAM = "sightings"
TABLE = f"streams/{STREAM}"
NOTHING = Keep(0, 0, 0, 0, 0)
START_US = 1_790_000_000_000_000

LAT, HEIGHT, BADGE, SEEN_US = 48.13715432198765, 519.7310482, 7_340_912_883_417, 1_765_432_123_456_789
TEXTS = {"face": "canary-face-anna", "plate": "CANARY PL 1234", "words": "canary spoken words", "note": "canary note of bo"}
PLACE = 11.57534908123
NUMBERS = (LAT, HEIGHT, BADGE, SEEN_US, PLACE)

COLUMNS = (
    Column("speed", ColumnType.FLOAT64),
    Column("lat", ColumnType.FLOAT64, pii=PiiClass.LOCATION, minimum=-90, maximum=90),
    Column("height", ColumnType.FLOAT32, pii=PiiClass.LOCATION),
    Column("badge", ColumnType.INT64, pii=PiiClass.DEVICE),
    Column("seen", ColumnType.TIMESTAMP, pii=PiiClass.LOCATION),
    Column("face", ColumnType.STRING, pii=PiiClass.FACE),
    Column("plate", ColumnType.STRING, pii=PiiClass.PLATE, unique=True),
    Column("words", ColumnType.STRING, pii=PiiClass.VOICE),
    Column("note", ColumnType.STRING, pii=PiiClass.TEXT),
    Column("places", ColumnType.LIST_FLOAT64, pii=PiiClass.LOCATION),
    Column(
        "owner",
        ColumnType.STRUCT,
        fields=(Column("plate", ColumnType.STRING, pii=PiiClass.PLATE), Column("age", ColumnType.INT64)),
    ),
)
CONTRACT = Contract(STREAM, "1.0.0", COLUMNS)
POLICY = Policy("known", (STREAM,), (Rule("known", f"plate = '{TEXTS['plate']}'"), Rule("north", "lat > 40")))


def patterns() -> dict[str, bytes]:
    """Each canary in every form in which a file may hold it."""
    found = {f"text {name}": text.encode() for name, text in TEXTS.items()}
    for value in NUMBERS:
        found[f"{value} as text"] = repr(value).encode()
        if isinstance(value, float):
            found[f"{value} as double"] = struct.pack("<d", value)
            found[f"{value} as float"] = struct.pack("<f", value)
        else:
            found[f"{value} as int64"] = struct.pack("<q", value)
    found["seen as text"] = datetime.fromtimestamp(SEEN_US / 1e6, UTC).strftime("%Y-%m-%dT%H:%M:%S").encode()
    found["height as text"] = repr(struct.unpack("<f", struct.pack("<f", HEIGHT))[0]).encode()
    return found


def leaks(root: Path) -> set[tuple[str, str]]:
    """Where a canary is found, next to the rows, payloads, sets, quarantine and landing themselves."""
    found: set[tuple[str, str]] = set()
    for path in root.rglob("*"):
        if not path.is_file():
            continue
        name = str(path.relative_to(root))
        parts = name.split("/")
        if parts[0] in ("payload", "sets", "landing", "objects", "chips") or "policies" in parts:
            continue
        is_data = parts[0] in ("streams", "quarantine") and "_delta_log" not in parts
        for body in _bodies(path, is_data=is_data):
            found |= {(name, what) for what, pattern in patterns().items() if pattern in body}
    return found


def _bodies(path: Path, *, is_data: bool) -> Iterator[bytes]:
    """What a file says: its bytes, and for Parquet its footer and, unless its rows are the data, every value of it."""
    if path.suffix != ".parquet":
        yield path.read_bytes()
        return
    with path.open("rb") as file:
        file.seek(-8, 2)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, 2)
        yield file.read(length)
    if is_data:
        metadata = pq.read_metadata(path)
        chunks = [metadata.row_group(g).column(c) for g in range(metadata.num_row_groups) for c in range(metadata.num_columns)]
        yield repr([(chunk.statistics.min, chunk.statistics.max) for chunk in chunks if chunk.statistics is not None]).encode()
        return
    table = pq.read_table(path)
    yield repr(table.to_pylist()).encode()
    for column in table.columns:
        for chunk in column.chunks:
            for buffer in chunk.buffers():
                yield b"" if buffer is None else bytes(buffer)


def rows(count: int = 10, **changes: Any) -> pa.RecordBatch:
    columns = {
        "event_time": pa.array([START_US + at * 1_000 for at in range(count)]).cast(pa.timestamp("us", "UTC")),
        "speed": pa.array([float(at) for at in range(count)]),
        "lat": pa.array([LAT] * count),
        "height": pa.array([HEIGHT] * count, pa.float32()),
        "badge": pa.array([BADGE] * count, pa.int64()),
        "seen": pa.array([SEEN_US] * count).cast(pa.timestamp("us", "UTC")),
        **{name: [text] * count for name, text in TEXTS.items()},
        "places": pa.array([[PLACE, LAT]] * count),
        "owner": pa.array([{"plate": TEXTS["plate"], "age": 40}] * count),
        **changes,
    }
    return pa.record_batch(columns)


def contracts(core: Core, *versions: Contract) -> None:
    folder = core.root.with_name("contracts")
    folder.mkdir(exist_ok=True)
    for contract in versions:
        (folder / f"{contract.name}-{contract.version}.odcs.yaml").write_text(to_odcs(contract))
    core.config = msgspec.structs.replace(core.config, contracts=str(folder))


@pytest.fixture
def lake(core: Core, envelope: MakeEnvelope, as_ipc: AsIpc) -> Any:
    """Five runs of a stream whose every private class has a value found nowhere else; one sample of each is refused."""
    contracts(core, CONTRACT)
    for run in range(5):
        far = as_ipc(rows(2, lat=pa.array([LAT, 48_137.15432])))
        other = as_ipc(rows(1, badge=pa.array([float(BADGE) + 0.5]), places=pa.array([f"{PLACE}"])))
        bodies = [as_ipc(rows(10)), far, other]
        counts = [10, 2, 1]
        seqs = [run * 20, run * 20 + 10, run * 20 + 12]
        core.landing.seal([
            envelope(seq, count, stream=STREAM, body=body) for seq, count, body in zip(seqs, counts, bodies, strict=True)
        ])  # fmt: skip
        core.run()
    return core


def test_the_search_finds_what_is_there(lake: Core) -> None:
    (lake.root / "rollups").mkdir()
    pq.write_table(
        pa.table({"min": [LAT], "seen": pa.array([SEEN_US]).cast(pa.timestamp("us"))}), lake.root / "rollups/x.parquet"
    )
    (lake.root / "status").mkdir(exist_ok=True)
    (lake.root / "status/x.json").write_text(json.dumps({"reason": TEXTS["plate"], "badge": BADGE}))
    pq.write_table(pa.table({"lat": [LAT]}), lake.root / TABLE / "shown.parquet")
    assert {name for name, _ in leaks(lake.root)} == {"rollups/x.parquet", "status/x.json", f"{TABLE}/shown.parquet"}
    assert len(lake.rows("quarantine")) == 10


def test_no_private_value_is_anywhere_after_runs_profiles_and_maintenance(lake: Core) -> None:
    keep_quality(lake_at(lake.root), CONTRACT)
    maintain(lake_at(lake.root), Keep())
    assert leaks(lake.root) == set()
    assert set(read_rollup(lake_at(lake.root), STREAM).column("column").to_pylist()) == {"speed"}
    assert read_quality(lake_at(lake.root), STREAM).filter(column="lat")["rows"].sum() == 55
    maintain(lake_at(lake.root), NOTHING)
    assert leaks(lake.root) == set()


def test_nor_after_checkpoints_compaction_retag_and_backfill(lake: Core) -> None:
    retag_stream(lake_at(lake.root), STREAM, [POLICY], RuleTagger(Tagger.compile([POLICY], CONTRACT)))
    compact_all(lake_at(lake.root), 2)
    backfill(lake.config, segments_of("1-5"), IN_PROCESS, SystemClock())
    for name in (TABLE, "quarantine", "commits"):
        DeltaTable(lake.root / name).create_checkpoint()
    maintain(lake_at(lake.root), Keep())
    assert leaks(lake.root) == set()


def test_what_other_tools_write_into_footers_is_taken_out(lake: Core) -> None:
    DeltaTable(lake.root / TABLE).delete("seq % 2 = 0")
    assert leaks(lake.root)
    maintain(lake_at(lake.root), NOTHING)
    assert leaks(lake.root) == set()
    before = {path: path.stat().st_mtime_ns for path in (lake.root / TABLE).glob("*.parquet")}
    DeltaTable(lake.root / TABLE).optimize.compact()
    maintain(lake_at(lake.root), NOTHING)
    assert {path: path.stat().st_mtime_ns for path in (lake.root / TABLE).glob("*.parquet")} == before
    assert lake.table(TABLE).num_rows == 25
    retag_stream(lake_at(lake.root), STREAM, [POLICY], RuleTagger(Tagger.compile([POLICY], CONTRACT)))
    maintain(lake_at(lake.root), NOTHING)
    assert leaks(lake.root) == set()


@pytest.mark.slow
def test_a_column_that_becomes_private_later_is_taken_out_of_what_was_kept_before(
    core: Core, envelope: MakeEnvelope, as_ipc: AsIpc
) -> None:
    plain = [msgspec.structs.replace(column, pii=PiiClass.NONE) for column in COLUMNS if column.type is not ColumnType.STRUCT]
    public = Contract(STREAM, "1.0.0", tuple(plain))
    contracts(core, public)
    kept = [column.name for column in plain]
    for run in range(5):
        core.landing.seal([envelope(run * 10, 10, stream=STREAM, body=as_ipc(rows(10).select(["event_time", *kept])))])
        core.run()
    keep_quality(lake_at(core.root), public)
    maintain(lake_at(core.root), Keep(grace_s=0))
    shown = {name.split("/")[0] for name, _ in leaks(core.root)}
    assert {"streams", "rollups", "quality", "runs"} <= shown
    private = Contract(STREAM, "1.1.0", tuple(column for column in COLUMNS if column.type is not ColumnType.STRUCT))
    contracts(core, private)
    core.landing.seal([envelope(500, 10, stream=STREAM, body=as_ipc(rows(10).select(["event_time", *kept])), version="1.0.0")])
    core.run()
    maintain(lake_at(core.root), NOTHING)
    assert leaks(core.root) == set()
    assert core.table(TABLE).num_rows == 60
    quality = read_quality(lake_at(core.root), STREAM)
    assert quality.filter(column="lat")["rows"].sum() == 50
    assert quality.filter(column="lat")["maximum"].null_count() == 5
    assert set(read_rollup(lake_at(core.root), STREAM).column("column").to_pylist()) == {"speed"}


def test_an_inspector_s_private_answers_are_not_cached_and_old_ones_are_forgotten(
    core: Core, envelope: MakeEnvelope, as_ipc: AsIpc, tmp_path: Path
) -> None:
    import hashlib
    import sqlite3

    exif = Image.Exif()
    exif[271] = "Maker"
    exif.get_ifd(34853).update(
        {1: "N", 2: (IFDRational(48), IFDRational(8), IFDRational(13_755_557, 1_000_000)), 3: "E", 4: (11.0, 0.0, 0.0)}
    )
    body = io.BytesIO()
    Image.new("RGB", (8, 8)).save(body, "JPEG", exif=exif)
    policies = tmp_path / "policies"
    policies.mkdir()
    (policies / "where.yaml").write_text(
        "id: where\nstreams: [camera_frame]\nrules:\n  - {tag: north, when: exif_latitude_deg > 40}\n"
        "inspect:\n  - {use: exif}\n  - {use: image}\n"
    )
    core.config = msgspec.structs.replace(core.config, policies=str(policies))
    picture = body.getvalue()
    batch = pa.record_batch({
        "event_time": pa.array([START_US]).cast(pa.timestamp("us", "UTC")), "media_type": ["image/jpeg"],
        "payload": pa.array([picture], pa.binary()), "payload_sha256": [hashlib.sha256(picture).hexdigest()],
    })  # fmt: skip
    old = core.root / "cache" / "inspect.sqlite"
    old.parent.mkdir()
    with sqlite3.connect(old) as database:
        database.execute("CREATE TABLE found (step TEXT, sha256 TEXT, body BLOB, PRIMARY KEY (step, sha256)) WITHOUT ROWID")
        database.execute("INSERT INTO found VALUES ('exif', 'x', ?)", (struct.pack("<d", LAT),))
    database.close()
    core.landing.seal([envelope(0, 1, stream="camera_frame", body=as_ipc(batch))])
    core.run()
    (row,) = core.rows("streams/camera_frame")
    latitude = row["exif_latitude_deg"]
    assert latitude == pytest.approx(48.1371543)
    cached = b"".join(path.read_bytes() for path in (core.root / "cache").rglob("*") if path.is_file())
    assert row["image_width"] == 8
    assert b"found" in cached
    for form in (struct.pack("<d", latitude), struct.pack(">d", latitude), struct.pack("<d", LAT)):
        assert form not in cached


def test_a_preview_shows_no_private_value(lake: Core) -> None:
    table = open_table(lake_at(lake.root), TABLE)
    assert table is not None
    found = Preview(POLICY, Tagger.compile([POLICY], CONTRACT))
    found.take(table.to_pyarrow_table())
    sheet = lake.root / "sheet.html"
    Sheet(lake_at(lake.root), "known", found.examples()).write(sheet)
    assert len(found.examples()) == 20
    assert "(private)" in sheet.read_text()
    assert leaks(lake.root) == set()


@pytest.mark.slow
def test_what_a_fault_or_a_refusal_says_is_kept_without_the_values_it_quotes(
    core: Core, envelope: MakeEnvelope, as_ipc: AsIpc, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.ingest import tabulate

    contracts(core, CONTRACT)
    core.landing.seal([envelope(0, 10, stream=STREAM, body=as_ipc(rows(10)))])
    core.run()

    def broken(table: Any, contract: Contract) -> Any:
        if table.num_rows == 3:
            raise ValueError(f'conversion of [{LAT}, {BADGE}, {TEXTS["plate"]!r}, "{TEXTS["note"]}"] failed')
        return reasons(table, contract)

    monkeypatch.setattr(tabulate, "reasons", broken)
    for run in range(3):
        core.landing.seal([envelope(100 + run * 10, 3, stream=STREAM, body=as_ipc(rows(3)))])
        core.run()
    assert len(core.rows("quarantine")) == 3
    keep_quality(lake_at(core.root), CONTRACT)
    maintain(lake_at(core.root), Keep())
    assert leaks(core.root) == set()
    assert list((core.root / "runs").glob("faults.json"))


def test_a_private_field_makes_its_whole_column_private() -> None:
    assert private_columns(CONTRACT) == {column.name for column in COLUMNS} - {"speed"}
    assert private_columns(Contract(STREAM, "1.0.0", COLUMNS[:1]), CONTRACT) == private_columns(CONTRACT)
