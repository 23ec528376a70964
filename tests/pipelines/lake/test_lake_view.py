"""People and programs read rows and payloads of a lake through its view; only the modules named here open them next to it."""

import ast
from pathlib import Path

import pytest
from deltalake.exceptions import DeltaError

from pipelines.lake.lake import lake_at
from tests.plant.core import Core, MakeEnvelope

OPENERS = {
    "pipelines.lake.table.open_table",
    "pipelines.lake.payload.read_payload",
    "pipelines.lake.reference.open_referred",
    "pipelines.lake.reference.referred_path",
    "pipelines.lake.reference.table_path",
}
# Of `pipelines/lake`: the view itself, what opens and commits tables, and what rewrites them. No reader for people is among them.
KEEPERS_OF_TABLES = {
    "pipelines/lake/commit.py",
    "pipelines/lake/compact.py",
    "pipelines/lake/delta_log.py",  # checkpoints
    "pipelines/lake/payload.py",
    "pipelines/lake/payload_batch.py",  # reads many payloads for the view alone
    "pipelines/lake/payload_drop.py",
    "pipelines/lake/private_values.py",
    "pipelines/lake/rollup.py",
    "pipelines/lake/table.py",
    "pipelines/lake/view.py",
}
# Outside of `pipelines/lake`: what writes the lake, keeps it, or counts it. Rows and payloads that these read go to nobody.
KEEPERS = {
    "pipelines/demo/stage.py",  # the demo counts the rows of its own lake
    "pipelines/imaging/work.py",  # a run cuts the chips of its own slides
    "pipelines/ingest/backfill.py",  # a backfill replaces rows
    "pipelines/ingest/chips/loop.py",  # a cut fetches the slides that it names
    "pipelines/ingest/chips/requests.py",  # a cut looks up its slides, and which of them have chips
    "pipelines/ingest/tabulate.py",  # a run looks at the objects that came with its rows
    "pipelines/inspect/stored.py",  # a run inspects objects that came with its rows
    "pipelines/maintenance/archive.py",
    "pipelines/maintenance/vacuum.py",
    "pipelines/policy/retag.py",  # a re-tagging names the files that it replaces
}


def opens_directly(path: Path) -> bool:
    """Whether a module imports what opens tables or payloads, or makes a table itself."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and OPENERS & {f"{node.module}.{each.name}" for each in node.names}:
            return True
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("DeltaTable", "deltalake.DeltaTable"):
            return True
    return False


@pytest.mark.slow
def test_only_the_named_modules_open_tables_and_payloads_beside_the_view(repository_root: Path) -> None:
    paths = sorted((repository_root / "pipelines").rglob("*.py"))
    assert {str(path.relative_to(repository_root)) for path in paths if opens_directly(path)} == KEEPERS | KEEPERS_OF_TABLES


def test_a_view_shows_a_table_as_it_is_and_as_it_was(core: Core, envelope: MakeEnvelope) -> None:
    for run in range(2):
        core.landing.seal([envelope(run * 10, 10)])
        core.run()
    view = lake_at(core.root).view()
    now = view.table("streams/vehicle_telemetry")
    assert now is not None
    assert now.to_pyarrow_table().num_rows == 20
    before = view.checked_table("streams/vehicle_telemetry", now.version() - 1)
    assert before is not None
    assert before.to_pyarrow_table().num_rows == 10
    assert view.table("streams/nothing") is None
    with pytest.raises(DeltaError):
        view.table("streams/vehicle_telemetry", 1_000)
