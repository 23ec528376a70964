"""`catchment policy preview | explain`: what a policy would do to committed rows, and why a sample has its tags."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from catchment.runtime.output import say_json
from catchment.runtime.terminal import PlainConsole, PlainTable, PlainTree, joined, styled
from pipelines.commands.options import AsJson, Config, Lake
from pipelines.commands.site import LakeSite
from pipelines.inspect.code import store_code
from pipelines.inspect.columns import steps_of
from pipelines.inspect.stored import StoredInspector
from pipelines.labels.rule_columns import LabelColumns, pin_labels
from pipelines.policy.committed import REFERENCES, blocks, row_count, sample_row
from pipelines.policy.contact_sheet import Sheet
from pipelines.policy.documents import load_policy
from pipelines.policy.engine import Tagger
from pipelines.policy.explain import Explained, RuleResult, explain
from pipelines.policy.guard import SandboxedTagger
from pipelines.policy.preview import Preview
from schemas.policy import Policy

SAMPLE_ROWS = 100_000
_OVERLAP_TAGS = 12
_COLOURS = {RuleResult.TRUE: "green", RuleResult.NEARLY: "yellow", RuleResult.FALSE: "dim", RuleResult.NULL: "dim"}


def preview(
    file: Annotated[Path, typer.Argument(help="A policy file (YAML).")],
    config: Config = None,
    lake: Lake = None,
    stream: Annotated[str, typer.Option(help="Of the policy's streams, which; default: its first.")] = "",
    rows: Annotated[int, typer.Option(min=1, help="About how many committed rows to try.")] = SAMPLE_ROWS,
    every: Annotated[bool, typer.Option("--all", help="Every row.")] = False,
    sheet: Annotated[Path | None, typer.Option(help="Write the example samples as a contact sheet: .html or .png.")] = None,
    as_json: AsJson = False,
) -> None:
    """What a policy would do: matches, overlaps, changes against the version in force, conflicts, twenty samples."""
    site, policy = LakeSite.open(config, lake), load_policy(file)
    name = stream or policy.streams[0]
    store_code(site.lake, [policy], file.parent)
    found = made_preview(site, policy, name, None if every else rows)
    if sheet is not None:
        Sheet(site.lake, f"{policy.label} on {name}", found.examples()).write(sheet)
    if as_json:
        say_json(json.dumps(_plain(found), default=str))
        return
    _print(found, name, row_count(site.lake, name), sheet)


def made_preview(site: LakeSite, policy: Policy, stream: str, limit: int | None) -> Preview:
    """Try a policy on committed rows, together with the others in force.

    Raises:
        NotFoundError: there is no such stream or contract.
        ExpressionError: a rule does not compile.
        RefusedError: a policy takes more than its budget.
    """
    others = tuple(each for each in site.in_force() if each.id != policy.id)
    before = next((each for each in site.in_force() if each.id == policy.id), None)
    contract = site.contract(stream, (*others, policy))
    with ExitStack() as closing:
        new = SandboxedTagger.compile([*others, policy], contract, is_strict=True)
        closing.callback(new.close)
        old = SandboxedTagger.compile([before], site.contract(stream, (before,)), is_strict=True) if before else None
        if old is not None:
            closing.callback(old.close)
        found = Preview(policy, new, old)
        stored = StoredInspector(site.lake, site.contract(stream, ()), steps_of((*others, policy), stream))
        fill = LabelColumns(site.lake, stream, found.columns, pin_labels(site.lake, found.columns), stored)
        for block in blocks(site.lake, stream, found.columns | fill.columns, limit):
            found.take(fill.fill(block))
    return found


def explain_sample(
    sample: Annotated[str, typer.Argument(help="device/epoch/seq, such as car-1/7/42.")],
    stream: Annotated[str, typer.Option("--stream", "-s", help="Its stream.")],
    config: Config = None,
    lake: Lake = None,
    file: Annotated[Path | None, typer.Option(help="A policy file to explain instead of the policies in force.")] = None,
    as_json: AsJson = False,
) -> None:
    """Which rules gave a sample its tags, with the value of each part of their expressions, and which nearly did."""
    site = LakeSite.open(config, lake)
    policies = (load_policy(file),) if file else site.in_force()
    if file:
        store_code(site.lake, policies, file.parent)
    inspector = StoredInspector(site.lake, site.contract(stream, ()), steps_of(policies, stream))
    tagger = Tagger.compile(policies, site.contract(stream, policies))
    fill = LabelColumns(site.lake, stream, tagger.columns, pin_labels(site.lake, tagger.columns), inspector)
    row = fill.fill(sample_row(site.lake, stream, sample))
    found = explain(tagger, row)
    stored = [f"{tag} of {rule}" for tag, rule in zip(row["tags"][0].as_py(), row["tag_rules"][0].as_py(), strict=True)]
    if as_json:
        say_json(json.dumps({"sample": sample, "stored": stored, "rules": [_rule_json(each) for each in found]}, default=str))
        return
    console = PlainConsole(highlight=False, soft_wrap=True)
    console.print(f"{sample} carries {', '.join(stored) or 'no tags'}")
    for each in found:
        console.print(_tree(each))


def _tree(each: Explained) -> PlainTree:
    colour = _COLOURS[each.verdict]
    tree = PlainTree(joined(styled(each.verdict, colour), f" {each.tag} of {each.policy}: {each.text}"))
    if each.missing:
        tree.add(joined(styled("only this is missing:", colour), f" {each.missing}"))
    if each.verdict in (RuleResult.TRUE, RuleResult.NEARLY):
        for part in each.parts:
            tree.add(f"{part.text} = {'NULL' if part.value is None else part.value}")
    return tree


def _print(found: Preview, stream: str, total: int, sheet: Path | None) -> None:
    console = PlainConsole(highlight=False, soft_wrap=True)
    share = f"{found.tagged / found.rows:.1%}" if found.rows else "none"
    console.print(f"{found.policy.label} on {found.rows:,} of {total:,} rows of {stream}: {found.tagged:,} ({share}) get a tag")
    table = PlainTable("tag", "rows", "share", "before", "gained", "lost")
    for count in found.counts.values():
        part = f"{count.rows / found.rows:.2%}" if found.rows else ""
        numbers = (f"{count.rows:,}", part, f"{count.before:,}", f"{count.gained:,}", f"{count.lost:,}")
        table.add_row(count.tag, *(numbers if found.before else (*numbers[:2], "", "", "")))
    console.print(table)
    _print_overlap(console, found)
    for conflict in found.conflicts.values():
        both = f" {conflict.first} and {conflict.second} on {conflict.rows:,} rows, such as"
        console.print(joined(styled("conflict", "red"), both))
        console.print(joined(f"  {_shown(conflict.example)}"))
    for example in found.examples():
        console.print(joined(styled(" ".join(example.tags), "green"), f" {_shown(example.row)}"))
    if sheet is not None:
        console.print(f"contact sheet: {sheet}")


def _print_overlap(console: PlainConsole, found: Preview) -> None:
    tags = found.tags[:_OVERLAP_TAGS]
    if len(tags) < 2:
        return
    table = PlainTable("rows with both", *tags)
    for place, tag in enumerate(tags):
        table.add_row(tag, *(f"{found.overlap[place, other]:,}" for other in range(len(tags))))
    console.print(table)


def _plain(found: Preview) -> dict[str, Any]:
    return {
        "policy": found.policy.label,
        "rows": found.rows,
        "tagged": found.tagged,
        "tags": [
            {slot: getattr(count, slot) for slot in ("tag", "rows", "before", "gained", "lost")}
            for count in found.counts.values()
        ],
        "overlap": {"tags": found.tags, "rows": found.overlap.tolist()},
        "conflicts": [
            {"first": each.first, "second": each.second, "rows": each.rows, "example": each.example}
            for each in found.conflicts.values()
        ],
        "examples": [{"tags": each.tags, "row": each.row} for each in found.examples()],
    }


def _rule_json(each: Explained) -> dict[str, Any]:
    return {
        "tag": each.tag,
        "policy": each.policy,
        "when": each.text,
        "verdict": each.verdict,
        "missing": each.missing,
        "parts": {part.text: part.value for part in each.parts},
    }


def _shown(row: dict[str, Any]) -> str:
    key = f"{row.get('device')}/{row.get('epoch')}/{row.get('seq')}"
    hidden = ("device", "epoch", "seq", *REFERENCES)
    rest = (f"{name}={_short(value)}" for name, value in row.items() if value is not None and name not in hidden)
    return f"{key} {' '.join(rest)}"


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)[:80]
