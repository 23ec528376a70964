"""Options of `set plan` and `set build` for sets of arrays: from their texts to the rule of windows or pixels."""

import re
from dataclasses import dataclass
from typing import Annotated, Literal

import typer

from catchment.runtime.output import say
from pipelines.errors import RefusedError
from pipelines.training.array_draft import ArrayRule
from pipelines.training.array_rules import LabelRule, PictureRule, Resample, WindowRule
from pipelines.training.spec import parse_duration_s


@dataclass(frozen=True, slots=True)
class ArrayOptions:
    """The options as they were typed."""

    form: Annotated[str, typer.Option("--format", help="parquet, or zarr: windows (--window) or pixels (--size).")] = "parquet"
    window: Annotated[str, typer.Option(help="Length of a window, e.g. 2s.")] = ""
    stride: Annotated[str, typer.Option(help="From the start of a window to the next; default: the window.")] = ""
    rate_hz: Annotated[float, typer.Option("--rate", help="Steps a second of a window.")] = 0.0
    resample: Annotated[Resample, typer.Option(help="How a step gets its value from the rows around it.")] = Resample.PREVIOUS
    max_gap: Annotated[str, typer.Option(help="Farther than this from a row, a step has no value.")] = "1s"
    hole: Annotated[str, typer.Option(hidden=True, help="The old name of --max-gap, for one release.")] = ""
    label: Annotated[str, typer.Option(help="Column that labels the rows of a window.")] = ""
    label_rule: Annotated[LabelRule, typer.Option(help="How the label of a window follows from its rows.")] = LabelRule.MAJORITY
    signals: Annotated[
        str, typer.Option(help="NAME:VALUE, where each row is one signal: the column of names and that of values.")
    ] = ""
    size: Annotated[str, typer.Option(help="Height x width of the pixels, e.g. 224x224; 224x224x1 for grey.")] = ""
    fit: Annotated[str, typer.Option(help="exact: refuse pictures of another size; resize: stretch them.")] = "exact"

    @property
    def max_gap_s(self) -> float:
        """How far from a row a step may be; warns of the option's old name.

        Raises:
            RefusedError: not a duration.
        """
        if self.hole:
            say("warning: --hole is now --max-gap; the old name works until the next release", err=True)
        return parse_duration_s(self.hole or self.max_gap)


def array_rule(options: ArrayOptions, columns: tuple[str, ...]) -> ArrayRule | None:
    """The rule that the options give; None for a set of Parquet alone.

    Raises:
        RefusedError: the options do not fit one another.
    """
    if options.form not in {"parquet", "zarr"}:
        raise RefusedError(f"--format {options.form[:40]!r}: give parquet or zarr")
    if options.form == "parquet":
        if options.window or options.size:
            raise RefusedError("--window and --size make arrays; add --format zarr")
        return None
    if bool(options.window) == bool(options.size):
        raise RefusedError("--format zarr needs --window (telemetry, logs) or --size (pictures), one of the two")
    return _window_rule(options, columns) if options.window else _picture_rule(options)


def _window_rule(options: ArrayOptions, columns: tuple[str, ...]) -> WindowRule:
    if not options.rate_hz:
        raise RefusedError("--window needs --rate: steps a second, e.g. --rate 50")
    signal, _, value = options.signals.partition(":")
    return WindowRule(
        window_s=parse_duration_s(options.window),
        stride_s=parse_duration_s(options.stride or options.window),
        rate_hz=options.rate_hz,
        columns=columns,
        resample=options.resample,
        hole_s=options.max_gap_s,
        label=options.label,
        label_rule=options.label_rule,
        signal_column=signal,
        value_column=value,
    )


def _picture_rule(options: ArrayOptions) -> PictureRule:
    matched = re.fullmatch(r"(\d{1,6})x(\d{1,6})(?:x([13]))?", options.size)
    if matched is None or options.fit not in {"exact", "resize"}:
        raise RefusedError("pictures: give --size like 224x224 or 224x224x1, and --fit exact or resize")
    fit: Literal["exact", "resize"] = "exact" if options.fit == "exact" else "resize"
    return PictureRule(int(matched[1]), int(matched[2]), 1 if matched[3] == "1" else 3, fit)
