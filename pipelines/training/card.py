"""The card of a training set: one page that a person reads before they trust the set. Offline, without scripts."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pyarrow as pa

from catchment.runtime.plain import html_text
from pipelines.errors import NotFoundError
from pipelines.labels.agreement import LabelAgreement, agreement_of
from pipelines.labels.table import read_labels, task_table
from pipelines.lake.lake import Lake
from pipelines.training.card_charts import class_bars, data_charts
from pipelines.training.card_pictures import picture_sheet
from pipelines.training.card_words import agreement_words, leak_words, lineage, split_words
from pipelines.training.compare import SetFolder
from pipelines.training.leaks import LeakReport, find_leaks
from pipelines.training.manifest import Manifest

# Leaks of larger sets take longer than a build should wait for; `set check` finds them.
MAX_CHECKED_ROWS = 500_000
_NEAR_S = 2.0
_NEAR_BITS = 6
_STYLE = """:root{color-scheme:light dark;--ink:#1b2430;--page:#fff;--line:#dde3ea;--soft:#f2f5f8;--warn:#a4441a;--good:#2b7a4b}
@media(prefers-color-scheme:dark){:root{--ink:#dbe2ea;--page:#14191f;--line:#343d48;--soft:#1f262e;--warn:#f0a070;--good:#7ccf9b}}
*{box-sizing:border-box}body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;
color:var(--ink);background:var(--page);overflow-wrap:anywhere}h1{margin-bottom:.2rem}h2{margin-top:2.2rem}
table{border-collapse:collapse;margin:.5rem 0}td,th{text-align:left;padding:.2rem .9rem .2rem 0;
border-bottom:1px solid var(--line)}
.wide{overflow-x:auto}table.chart{width:100%}table.chart td{border:0;padding:.1rem .6rem .1rem 0}
table.chart svg{width:100%;height:1rem;display:block}td.bar{width:60%}td.n{font-variant-numeric:tabular-nums}
.key{display:inline-block;width:.8rem;height:.8rem;margin:0 .3rem 0 .8rem;border-radius:2px}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(11rem,1fr));gap:1rem}
.pictures{display:grid;grid-template-columns:repeat(auto-fill,minmax(9rem,1fr));gap:.8rem}
figure{margin:0}figure svg{width:100%;height:3.4rem;background:var(--soft)}figcaption{font-size:12px}
.names{display:flex;flex-wrap:wrap;gap:.1rem .9rem;margin:.3rem 0 .7rem;font-size:13px}
svg.key{height:.8rem;margin:0 .3rem 0 0;vertical-align:-.05rem}
.shot{position:relative;line-height:0}.shot img{width:100%;height:auto;border-radius:4px}
.shot svg{position:absolute;inset:0;width:100%;height:100%;background:none}
.shot svg *{fill-opacity:.25;stroke-width:2px;vector-effect:non-scaling-stroke}.shot polyline{fill:none}
.s0{fill:#ff5d3b;stroke:#ff5d3b}.s1{fill:#21d07a;stroke:#21d07a}.s2{fill:#39a0ff;stroke:#39a0ff}
.s3{fill:#ffd23b;stroke:#ffd23b}.s4{fill:#d86bff;stroke:#d86bff}.s5{fill:#22dfe0;stroke:#22dfe0}
.facts{display:flex;flex-wrap:wrap;gap:.4rem 1.4rem;margin:.2rem 0 1rem}.facts b{font-size:1.25rem;margin-right:.25rem}
.warn{color:var(--warn);font-weight:600}.good{color:var(--good)}
code,pre{background:var(--soft);padding:0 .3rem;border-radius:3px}pre{white-space:pre-wrap;padding:.6rem}
@media(max-width:34rem){body{margin:1rem auto}td.bar{width:45%}td,th{padding-right:.5rem}}
@media print{details{display:none}}"""


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What a card says that the manifest does not: leaks (None: not looked for), and the labels that the classes came from."""

    leaks: LeakReport | None = None
    task: str = ""
    labels: pa.Table | None = None
    agreement: LabelAgreement | None = None


def card_facts(lake: Lake, manifest: Manifest, folder: Path) -> CardFacts:
    """Look for leaks in a set that lies in a folder, and read the labels of its task at the version that it was built from.

    Raises:
        CorruptLakeError: a file is missing or cannot be read.
    """
    leaks = None
    if manifest.rows <= MAX_CHECKED_ROWS:
        leaks = find_leaks(lake, SetFolder(folder, manifest), near_s=_NEAR_S, bits=_NEAR_BITS)
    label = (manifest.spec or {}).get("label")
    task = str(label.get("task") or "") if isinstance(label, dict) else ""
    if task:
        version = next((each.delta_version for each in manifest.sources if each.stream == task_table(task)), None)
        # A version that was vacuumed leaves the card without shapes, not the set without a card.
        with suppress(NotFoundError):
            labels, _ = read_labels(lake, task, version)
            return CardFacts(leaks, task, labels, agreement_of(labels))
    return CardFacts(leaks, task)


def render_card(manifest: Manifest, folder: Path, facts: CardFacts | None = None) -> str:
    """The page as HTML without scripts; everything that came from outside is escaped."""
    facts = facts or CardFacts()
    title = html_text(f"{manifest.name} {manifest.version}")
    splits = [(name, f"{rows:,}", f"{rows / max(manifest.rows, 1):.1%}") for name, rows in manifest.split_rows().items()]
    tags = [(count.tag, count.split, f"{count.rows:,}") for count in manifest.tags]
    columns = [(column.name, column.type) for column in manifest.columns]
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width,initial-scale=1'>"
        f"<title>{title}</title><style>{_STYLE}</style><h1>{title}</h1>{_head(manifest)}"
        f"{picture_sheet(manifest, folder, facts.labels)}"
        f"<h2>Splits</h2>{_table(('split', 'rows', 'share'), splits)}{split_words(manifest)}"
        f"{class_bars(manifest)}{leak_words(facts.leaks)}{agreement_words(facts.task, facts.agreement)}"
        f"{data_charts(manifest, folder)}{lineage(manifest)}"
        f"<h2>Tags</h2>{_table(('tag', 'split', 'rows'), tags) if tags else '<p>No tags.</p>'}"
        f"<h2>Columns</h2>{_table(('column', 'type'), columns)}{_spec(manifest)}</html>\n"
    )


def _head(manifest: Manifest) -> str:
    built = datetime.fromtimestamp(manifest.created_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
    facts = [(f"{manifest.rows:,}", "samples"), (f"{manifest.bytes / 1e6:,.1f}", "MB"), (built, "built")]
    return "<div class=facts>" + "".join(f"<span><b>{value}</b>{name}</span>" for value, name in facts) + "</div>"


def _spec(manifest: Manifest) -> str:
    """The whole set spec, folded."""
    if not manifest.spec:
        return ""
    text = msgspec.json.format(msgspec.json.encode(manifest.spec), indent=1).decode()
    return f"<details><summary>The set spec</summary><pre>{html_text(text)}</pre></details>"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    top = "".join(f"<th>{html_text(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{html_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div class=wide><table><tr>{top}</tr>{body}</table></div>"
