"""What a card says in words: where a set came from, how it was split, which policies tagged it, and what leaks."""

from collections.abc import Iterator

from catchment.runtime.plain import html_text
from pipelines.labels.agreement import RELIABLE, LabelAgreement
from pipelines.training.array_rules import ArrayPart
from pipelines.training.leaks import LeakReport
from pipelines.training.manifest import Manifest


def lineage(manifest: Manifest) -> str:
    """Sources, conditions and what was left out, as sentences."""
    return "<h2>Where it came from</h2>" + "".join(f"<p>{line}</p>" for line in _lineage(manifest))


def _lineage(manifest: Manifest) -> Iterator[str]:
    for source in manifest.sources:
        table = html_text(source.stream)
        yield f"{source.rows:,} rows came from <b>{table}</b>, as it was at {source.version_words}."
    yield f"Kept where <code>{html_text(manifest.where)}</code>." if manifest.where else "No condition was set: all rows count."
    for part in manifest.left_out:
        yield f"{part.rows:,} rows were left out: {html_text(part.reason)}."
    if manifest.policies:
        listed = ", ".join(f"<code>{html_text(policy)}</code>" for policy in manifest.policies)
        yield f"Its tags were given by the policies {listed} (name@version)."
    else:
        yield "No policy tagged these rows."
    if manifest.arrays is not None:
        yield _arrays(manifest.arrays)
    for note in manifest.notes:
        yield f"{html_text(note[:1].upper() + note[1:])}."
    spec = f"the set spec <code>{html_text(str(manifest.spec.get('id', '')))}</code>" if manifest.spec else "a command"
    yield f"Built from {spec} with seed {manifest.seed} by catchment {html_text(manifest.code_version)}."


def _arrays(arrays: ArrayPart) -> str:
    rule = arrays.windows
    if rule is None:
        return "Its pictures are decoded to arrays of one size."
    return (
        f"Its windows are {rule.window_s:g} s long, one begins every {rule.stride_s:g} s, with {rule.rate_hz:g} steps a second "
        f"resampled by <i>{html_text(rule.resample)}</i>; {arrays.hole_share:.1%} of the values are holes."
    )


def split_words(manifest: Manifest) -> str:
    """How rows were split, as one sentence."""
    rule = manifest.split
    parts = [f"Rows of equal {html_text(', '.join(rule.group))} stay together"]
    if rule.block_s:
        parts.append(f"in blocks of {rule.block_s:g} s of event time")
    if rule.stratify:
        parts.append(f"classes of {html_text(', '.join(rule.stratify))} are spread over all splits")
    if rule.gap_s:
        parts.append(f"rows of one device in two splits lie at least {rule.gap_s:g} s apart")
    return f"<p>{', '.join(parts)}.</p>"


def leak_words(report: LeakReport | None) -> str:
    """Leaks between splits and near-duplicates: a table, or that there are none, and what could not be checked."""
    if report is None:
        return "<h2>Leaks</h2><p>Not looked for here, because the set is large: <code>catchment set check</code> does.</p>"
    found = [leak for leak in report.leaks if leak.rows]
    kinds = list(dict.fromkeys(leak.kind for leak in report.leaks))
    if found:
        rows = "".join(
            f"<tr><td>{html_text(leak.kind)}</td><td>{html_text(leak.split)}</td><td class=n>{leak.rows:,}</td>"
            f"<td class=n>{leak.share:.1%}</td></tr>"
            for leak in found
        )
        head = "<tr><th>what another split has of it</th><th>split</th><th>rows</th><th>share</th></tr>"
        listed = f"<p class=warn>Splits know of each other.</p><div class=wide><table>{head}{rows}</table></div>"
    else:
        listed = f"<p class=good>No leak found: {html_text(', '.join(kinds))}.</p>" if kinds else ""
    unchecked = "".join(f"<p>Not checked: {html_text(reason)}.</p>" for reason in report.unchecked)
    return f"<h2>Leaks and near-duplicates</h2>{listed}{unchecked}"


def agreement_words(task: str, found: LabelAgreement | None) -> str:
    """How far the people agree who labelled for the task of a set; nothing for a set without one."""
    if found is None:
        return ""
    lines = [f"{found.samples:,} samples have a class in task <b>{html_text(task)}</b>, {found.by_several:,} by several people."]
    for name, alpha in found.measures:
        interval = f" (95 %: {alpha.low:.2f} to {alpha.high:.2f})" if alpha.low is not None and alpha.high is not None else ""
        is_weak = alpha.alpha is not None and alpha.alpha < RELIABLE
        weak = f" <span class=warn>Below {RELIABLE}: people disagree.</span>" if is_weak else ""
        lines.append(f"Krippendorff's alpha of {name}: {alpha.alpha:.2f}{interval}.{weak}")
    if found.mean_overlap is not None:
        lines.append(f"Shapes around one thing overlap by {found.mean_overlap:.2f} (IoU) in the mean.")
    return f"<h2>Labels</h2>{''.join(f'<p>{line}</p>' for line in lines)}"
