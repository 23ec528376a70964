"""Chips are a stream like any other: policies tag them, slides lend them columns and tags, and a threshold is a re-tag."""

import itertools
import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pytest
import pyvips

from pipelines.config import CoreConfig
from pipelines.contracts.odcs import to_odcs
from pipelines.contracts.registry import ContractSet
from pipelines.errors import ConfigError
from pipelines.labels.drawn import Drawn, ForeignFile, LabelKind
from pipelines.labels.matching import LabelOrigin, match_labels
from pipelines.labels.table import append_labels
from pipelines.lake.lake import lake_at
from pipelines.open_lake import open_lake
from schemas.chip_contract import CHIP_COLUMNS, chip_contract
from schemas.contract import ChipSpec, Column, ColumnType, PiiClass, builtin_contract
from tests.fakes.run_core import RunCore
from tests.plant.core import Core, Landing, Mailbox, ipc, telemetry
from tests.plant.core import envelope as landing_row
from tests.plant.slides import half_white, landed, tiff_slide

CHIPS = "streams/slide_chips"
POLICIES = """
id: tissue
streams: [slide_chips]
rules:
  - tag: tissue
    when: background < {limit}
  - tag: stained
    when: list_contains(slide_tags, 'he') AND slide_mpp < 1
examples:
  - row: {{background: 0.1, slide_tags: [he], slide_mpp: 0.5}}
    tags: [tissue, stained]
"""
STAIN = "id: stain\nstreams: [slide]\nrules:\n  - tag: he\n    when: label = 'he'\n"


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A core's folder, made once: slides are cut into chips of 32 px; a policy for slides, one for their chips; two slides."""
    here = tmp_path_factory.mktemp("planted")
    contract = msgspec.structs.replace(builtin_contract("slide"), version="9.0.0", chips=(ChipSpec("s32", 32),))
    (here / "contracts").mkdir()
    (here / "contracts/slide.odcs.yaml").write_text(to_odcs(contract))
    (here / "policies").mkdir()
    (here / "policies/stain.yaml").write_text(STAIN)
    (here / "policies/tissue.yaml").write_text(POLICIES.format(limit=0.5))
    (here / "lake").mkdir()
    core = core_in(here)
    bodies = [tiff_slide(half_white(seed=seed)) for seed in range(2)]
    core.landing.seal([landed(bodies, label=["he", "ihc"], mpp=[0.5, 0.5])])
    core.run()
    return here


@pytest.fixture
def site(planted: Path, tmp_path: Path) -> Core:
    """A copy of it."""
    shutil.copytree(planted, tmp_path / "site")
    (tmp_path / "site/core.toml").write_text('lake = "lake"\ncontracts = "contracts"\npolicies = "policies"\n')
    return core_in(tmp_path / "site")


def core_in(here: Path) -> Core:
    root = here / "lake"
    config = CoreConfig(lake=str(root), contracts=str(here / "contracts"), policies=str(here / "policies"))
    return Core(root, Landing(root, numbers=itertools.count(len(list(root.glob("landing/*/*"))) + 1)), Mailbox(), config)


def tags_of(core: Core) -> dict[tuple[int, int], set[str]]:
    return {(row["seq"], row["chip_index"]): set(row["tags"]) for row in core.rows(CHIPS)}


def test_chips_are_tagged_when_they_are_cut_and_their_slides_tags_are_joined_not_copied(site: Core) -> None:
    tags = tags_of(site)
    assert len(tags) == 32
    assert tags[0, 0] == {"stained"}
    assert tags[0, 8] == {"stained", "tissue"}
    assert (tags[1, 0], tags[1, 8]) == (set(), {"tissue"})
    assert "slide_tags" not in site.table(CHIPS).schema.names
    assert {rule.partition("@")[0] for row in site.rows(CHIPS) for rule in row["tag_rules"]} == {"tissue"}


@pytest.mark.slow
def test_a_new_threshold_is_a_retag_and_changes_the_set(site: Core, run_core: RunCore, tmp_path: Path) -> None:
    config = ("-c", str(site.root.parent / "core.toml"))
    shards = {path: path.stat().st_mtime_ns for path in (site.root / "chips").rglob("*.parquet")}
    policy, spec = site.root.parent / "policies/tissue.yaml", tmp_path / "set.yaml"
    spec.write_text(
        "id: tissue\nsources:\n- {stream: slide_chips, where: \"has('tissue') AND list_contains(slide_tags, 'he')\"}\n"
        "columns: [slide_label, x, y, background]\nsplit: {shares: {train: 1.0}, group: [source_sha256]}\n"
    )
    assert run_core("policy", "check", str(policy), *config).code == 0
    assert run_core("policy", "test", str(policy), *config).code == 0
    assert run_core("set", "build", str(spec), *config).code == 0
    policy.write_text(POLICIES.format(limit=1.5))
    preview = run_core("policy", "preview", str(policy), *config, "--json")
    (counts,) = [tag for tag in json.loads(preview.out)["tags"] if tag["tag"] == "tissue"]
    assert (counts["rows"], json.loads(preview.out)["rows"]) == (32, 32)
    assert run_core("policy", "retag", "slide_chips", *config).code == 0
    assert all("tissue" in tags for tags in tags_of(site).values())
    assert run_core("set", "build", str(spec), *config).code == 0
    before, after = (open_lake(site.root).open_set(f"tissue/{version}") for version in (1, 2))
    assert (len(before), len(after)) == (8, 16)
    assert {sample["slide_label"] for sample in after} == {"he"}
    assert {source.stream for source in after.manifest.sources} == {"slide_chips", "slide"}
    assert shards == {path: path.stat().st_mtime_ns for path in (site.root / "chips").rglob("*.parquet")}


@pytest.mark.slow
def test_shapes_on_a_slide_give_its_chips_classes_and_boxes_in_a_set(site: Core, run_core: RunCore, tmp_path: Path) -> None:
    config = ("-c", str(site.root.parent / "core.toml"))
    (slide, _) = site.rows("streams/slide")
    samples = pa.table({"stream": ["slide"], **{name: [slide[name]] for name in ("device", "epoch", "seq", "payload_sha256")}})
    box = Drawn("", LabelKind.BOX, "tumour", (0, 64, 48, 32), sample=f"slide/scanner-1/7/{slide['seq']}")
    labels = match_labels(ForeignFile("test", [box]), samples, LabelOrigin("tissue", "ann")).rows
    append_labels(lake_at(site.root), "tissue", labels)
    spec = tmp_path / "set.yaml"
    spec.write_text(
        "id: boxes\nsources: [{stream: slide_chips}]\nlabel: {task: tissue, chip: majority, shapes: boxes}\n"
        "columns: [x, y]\nsplit: {shares: {train: 1.0}, group: [source_sha256]}\n"
    )
    assert run_core("set", "build", str(spec), *config).code == 0
    chosen = open_lake(site.root).open_set("boxes")
    found = {(sample["x"], sample["y"]): (sample["label"], sample["boxes"]) for sample in chosen}
    assert len(found) == 16, "the other slide was never labelled, so its chips have no class"
    assert {place for place, (label, _) in found.items() if label == "tumour"} == {(0, 64)}
    (half,) = found[32, 64][1]
    assert (half["x"], half["width"], half["covered"], found[32, 64][0]) == (0, 16, 0.5, "nothing")
    assert any("by the rule majority of the shapes of task tissue at version" in note for note in chosen.manifest.notes)
    done = run_core(
        "set", "export", "boxes/1", str(tmp_path / "coco"), "--to", "coco", "--boxes", "boxes", "--recipient", "QA", *config
    )
    assert done.code == 0, done


@pytest.mark.slow
def test_a_page_of_a_slide_shows_it_put_together_with_a_heat_map_and_labels(
    site: Core, run_core: RunCore, tmp_path: Path
) -> None:
    config = ("-c", str(site.root.parent / "core.toml"))
    box = Drawn("", LabelKind.BOX, "tumour", (10, 70, 40, 40), sample="slide/scanner-1/7/0")
    (slide, _) = site.rows("streams/slide")
    samples = pa.table({"stream": ["slide"], **{name: [slide[name]] for name in ("device", "epoch", "seq", "payload_sha256")}})
    append_labels(
        lake_at(site.root), "tissue", match_labels(ForeignFile("test", [box]), samples, LabelOrigin("tissue", "ann")).rows
    )
    for suffix in ("html", "png"):
        done = run_core("chips", "sheet", "scanner-1/7/0", str(tmp_path / f"a.{suffix}"), "--task", "tissue", *config)
        assert done.code == 0, done
        assert "16 chips of scanner-1/7/0 by s32" in done.out
    page = pyvips.Image.new_from_file(str(tmp_path / "a.png")).numpy()
    assert page.shape == (128, 128 + 16 + 128, 3)
    assert np.array_equal(page[:64, :128], half_white(128, 0)[:64]), "glass, as it was"
    below = page[64:, :128].astype(int)
    outline = (below == (230, 0, 120)).all(axis=2)
    assert outline[6, 10:50].all()
    assert np.abs(below - half_white(128, 0)[64:])[~outline].mean() == 0, "PNG chips come back as they were"
    assert (page[0, 200] == (68, 1, 84)).all(), "no tissue is dark"
    body = (tmp_path / "a.html").read_text()
    assert body.count("<figure>") == 2 + 16
    assert run_core("chips", "sheet", "scanner-1/7/9", str(tmp_path / "b.png"), *config).code == 3
    assert run_core("chips", "sheet", "scanner-1/7/0", str(tmp_path / "b.gif"), *config).code == 3


def test_explain_names_a_chip_by_its_spec_and_number_and_shows_the_values_of_its_slide(site: Core, run_core: RunCore) -> None:
    config = ("-c", str(site.root.parent / "core.toml"))
    found = run_core("policy", "explain", "scanner-1/7/0/s32/8", "-s", "slide_chips", *config)
    assert found.code == 0, found
    assert "scanner-1/7/0/s32/8 carries tissue of tissue@" in found.out
    assert "slide_mpp = 0.5" in found.out
    assert run_core("policy", "explain", "scanner-1/7/0/s32", "-s", "slide_chips", *config).code == 3


def test_rows_of_chips_are_selected_by_columns_of_their_slides(site: Core) -> None:
    lake = open_lake(site.root)
    rows = lake.rows("slide_chips", columns=["seq", "chip_index", "slide_label"], where="slide_label = 'ihc' AND y >= 64")
    assert {(row["seq"], row["slide_label"]) for row in rows.to_pylist()} == {(1, "ihc")}
    assert len(rows) == 8
    assert "slide_label" not in lake.rows("slide_chips").schema.names


def test_a_device_cannot_send_by_the_contract_of_chips(site: Core) -> None:
    site.landing.seal([landing_row(0, 10, stream="slide_chips", body=ipc(telemetry(0, 10)))])
    site.run()
    (refused,) = [row for row in site.rows("quarantine") if row["stream"] == "slide_chips"]
    assert "no contract slide_chips" in refused["reason"]
    assert len(site.rows(CHIPS)) == 32


def test_a_broken_policy_file_leaves_the_tags_of_before_in_force(site: Core) -> None:
    from pipelines.ingest.chips.tagging import ChipTagger

    tagger = ChipTagger(lake_at(site.root), str(site.root.parent / "policies"))
    (site.root.parent / "policies/tissue.yaml").write_text("id: [")
    with pytest.raises(Exception, match="the policies cannot be read"):
        tagger.tag("slide", ContractSet.load(site.config.contracts), ())


def test_device_rules_for_chips_are_refused_because_no_device_has_them(site: Core, run_core: RunCore) -> None:
    policy = site.root.parent / "policies/edge.yaml"
    policy.write_text("id: edge\nstreams: [slide_chips]\nkeep:\n  - when: background < 0.5\n")
    found = run_core("policy", "check", str(policy), "-c", str(site.root.parent / "core.toml"))
    assert found.code == 1
    assert "write these rules for slide" in found.out


def test_the_contract_of_chips_has_the_slides_columns_with_their_classes_of_personal_data() -> None:
    private = Column("patient", ColumnType.STRING, required=True, pii=PiiClass.TEXT)
    long = Column("a" * 60, ColumnType.STRING)
    slide = msgspec.structs.replace(builtin_contract("slide"), columns=(private, long))
    contract = chip_contract(slide)
    assert contract.name == "slide_chips"
    assert contract.column("slide_patient") == msgspec.structs.replace(private, name="slide_patient", required=False)
    assert [column.name for column in contract.columns] == [
        *(column.name for column in CHIP_COLUMNS), "slide_patient", "slide_tags",
    ]  # fmt: skip


def test_a_written_contract_with_the_name_of_chips_is_refused(tmp_path: Path) -> None:
    contract = msgspec.structs.replace(builtin_contract("vehicle_telemetry"), name="slide_chips")
    (tmp_path / "a.odcs.yaml").write_text(to_odcs(contract))
    with pytest.raises(ConfigError, match="that of the chips of stream slide"):
        ContractSet.load(str(tmp_path))


def test_the_contracts_of_chips_are_listed_and_shown(site: Core, run_core: RunCore) -> None:
    config = ("-c", str(site.root.parent / "core.toml"))
    assert "slide_chips" in run_core("contract", "ls", *config).out
    shown = run_core("contract", "show", "slide_chips", *config)
    assert shown.code == 0
    assert "slide_mpp" in shown.out
