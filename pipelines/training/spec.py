"""A set spec: what a training set is made of, written as YAML and reviewed like a policy. The document only; nothing is read.

A spec's version is the hash of its content. The manifest of each set that it gave holds the whole document.
"""

import hashlib
import re
from typing import Annotated, Literal

import msgspec

from pipelines.errors import RefusedError
from pipelines.labels.resolve import ResolveRule
from pipelines.training.manifest import SET_SOURCE
from pipelines.training.sample_list import MAX_SAMPLES, checked_samples
from schemas.ids import encode_json

MAX_EXPRESSION_CHARS = 4_000
MAX_PARTS = 100
_UNIT_S = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3_600.0, "d": 86_400.0}
_DURATION = r"\s*(\d+(?:\.\d+)?)\s*(ms|s|min|h|d)\s*"


class SpecValueError(RefusedError, ValueError):
    """A value of a set spec is not allowed; the reader of the file adds its line."""


Meta = msgspec.Meta
Name = Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,62}$")]
Column = Annotated[str, Meta(min_length=1, max_length=128)]
Columns = Annotated[tuple[Column, ...], Meta(max_length=MAX_PARTS)]
Stream = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,62}$", description="A stream's table, chip tables included.")]
Version = Annotated[int, Meta(ge=0)]
Pinned = Annotated[Version | None, Meta(description="The Delta version to read; the newest if left out.")]
Text = Annotated[str, Meta(max_length=MAX_EXPRESSION_CHARS)]
Rule = Annotated[str, Meta(max_length=MAX_EXPRESSION_CHARS, description="Expression; only rows for which it is true.")]
Duration = Annotated[str, Meta(pattern=f"^({_DURATION})?$", description="A number and ms, s, min, h or d, like 30 s.")]
Rows = Annotated[int, Meta(ge=0)]
Prefix = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_]{0,40}$")]


def parse_duration_s(text: str) -> float:
    """Read `30s`, `5 min` or `1h` as seconds; empty text is 0.

    Raises:
        RefusedError: not of that form.
    """
    if not text.strip():
        return 0.0
    matched = re.fullmatch(_DURATION, text)
    if matched is None:
        raise SpecValueError(f"{text[:40]!r} is no duration; write a number and ms, s, min, h or d, like 30s or 5min")
    return float(matched[1]) * _UNIT_S[matched[2]]


class _Part(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A part of a spec: a key that it does not know is an error."""


class SourceSpec(_Part, frozen=True, rename={"set_name": "set"}):
    """A stream whose rows become samples, or an earlier set whose samples do."""

    stream: Annotated[str, Meta(pattern=r"^([a-z][a-z0-9_]{0,62})?$", description="A stream's table, chip tables included.")] = ""
    version: Annotated[
        Version | None, Meta(description="The Delta version to read, of a set its number; the newest if left out.")
    ] = None
    where: Rule = ""
    samples: Annotated[
        tuple[str, ...], Meta(max_length=MAX_SAMPLES, description="Only these: stream/device/epoch/seq; empty: all rows.")
    ] = ()
    slide_version: Annotated[
        Version | None, Meta(description="Of chips: the Delta version of their slides' table; the newest if left out.")
    ] = None
    samples_from: Annotated[
        str, Meta(max_length=1_000, description="File of samples, one a line, next to the spec; its names go into the set.")
    ] = ""
    set_name: Annotated[str, Meta(pattern=r"^([a-z][a-z0-9_-]{0,62})?$", description="An earlier set, not a stream.")] = ""
    splits: Annotated[Columns, Meta(description="Of a set: only these splits; empty: all.")] = ()

    def __post_init__(self) -> None:
        if bool(self.stream) == bool(self.set_name):
            raise SpecValueError("a source is either a stream or a set: name one of them")
        if self.splits and not self.set_name:
            raise SpecValueError(f"source {self.title}: a stream has no splits; only a set has")
        if self.samples and self.samples_from:
            raise SpecValueError(f"source {self.title}: give either samples or samples_from")
        checked_samples(self.samples, f"source {self.title}")
        strange = [name for name in self.samples if self.stream and name.partition("/")[0] != self.stream]
        if strange:
            raise SpecValueError(f"source {self.title}: {strange[0][:80]} is a sample of another stream")

    @property
    def title(self) -> str:
        """What a manifest and messages call it: a stream by its name, a set as `sets/<name>`."""
        return self.stream or f"{SET_SOURCE}{self.set_name}"


class PivotSpec(_Part, frozen=True):
    """Rows of name and value, such as CAN signals, become one column for each name in `keep`."""

    keep: Annotated[Columns, Meta(min_length=1, description="The names that become columns.")]
    name: Column = "signal"
    value: Column = "value"


class JoinSpec(_Part, frozen=True):
    """Columns of another stream's row of the same device, the nearest in event time within a tolerance; else nulls."""

    stream: Stream
    tolerance: Duration
    version: Pinned = None
    where: Rule = ""
    columns: Columns = ()
    pivot: PivotSpec | None = None
    direction: Annotated[
        Literal["nearest", "backward", "forward"], Meta(description="backward: at or before the sample; forward: at or after.")
    ] = "nearest"
    prefix: Annotated[Prefix, Meta(description="Put before each joined column's name.")] = ""
    age: Annotated[str, Meta(description="Column for the seconds from the joined row to the sample; none if empty.")] = ""

    def __post_init__(self) -> None:
        if parse_duration_s(self.tolerance) <= 0:
            raise SpecValueError(f"the join of {self.stream} needs a tolerance above 0, like 200 ms")
        if bool(self.columns) == (self.pivot is not None):
            raise SpecValueError(f"the join of {self.stream} needs either columns or a pivot")

    @property
    def gives(self) -> tuple[str, ...]:
        """The names of the columns that it adds."""
        from_rows = self.columns if self.pivot is None else self.pivot.keep
        return (*(f"{self.prefix}{column}" for column in from_rows), *((self.age,) if self.age else ()))


class DerivedSpec(_Part, frozen=True):
    """A column computed by an expression, which may read the columns before it."""

    name: Name
    value: Annotated[str, Meta(min_length=1, max_length=MAX_EXPRESSION_CHARS, description="Gives a number, text, time or bool.")]


class LabelSpec(_Part, frozen=True):
    """The class of each sample: a column, or what people said in a label task; renamed and merged by `classes`."""

    column: Annotated[str, Meta(description="A column of classes; or name a task.")] = ""
    task: Annotated[str, Meta(description="A table labels/<task>.")] = ""
    version: Annotated[Version | None, Meta(description="The labels' Delta version; the newest if left out.")] = None
    resolve: Annotated[ResolveRule, Meta(description="Which of several labels of a sample counts.")] = "latest"
    name: Annotated[Name, Meta(description="The column of the set that holds the class.")] = "label"
    classes: Annotated[dict[str, str], Meta(description="From each class to the one it counts as; several may merge.")] = {}
    other: Annotated[Literal["refuse", "keep", "drop"], Meta(description="What becomes of classes that are not listed.")] = (
        "refuse"
    )
    unlabelled: Annotated[Literal["drop", "keep"], Meta(description="What becomes of samples without a class.")] = "drop"
    chip: Annotated[
        Literal["", "any", "majority", "centre", "fraction"],
        Meta(description="Of chips: how the shapes on a slide give each chip a class; empty: each has the class of its slide."),
    ] = ""
    fraction: Annotated[float, Meta(gt=0, le=1, description="With chip: fraction, the share that a class must cover.")] = 0.5
    shapes: Annotated[str, Meta(pattern=r"^([A-Za-z_][A-Za-z0-9_]{0,62})?$", description="Column for a chip's shapes.")] = ""

    def __post_init__(self) -> None:
        if bool(self.column) == bool(self.task):
            raise SpecValueError("a label needs either a column or a task")
        if self.column and (self.chip or self.shapes):
            raise SpecValueError("shapes are carried to chips from a task, not from a column")
        if self.shapes and not self.chip:
            raise SpecValueError("shapes need a rule for the class of a chip (chip: any | majority | centre | fraction)")
        if self.column and self.version is not None:
            raise SpecValueError("the version of a label is that of its task; a column has that of its stream")


class CapSpec(_Part, frozen=True):
    """At most so many rows of equal values in some columns; which ones, the seed decides."""

    per: Annotated[Columns, Meta(min_length=1)]
    rows: Annotated[int, Meta(ge=1)]


class SampleSpec(_Part, frozen=True):
    """A seeded sample: a row that is taken stays taken in later versions, whatever rows join."""

    share: Annotated[float, Meta(gt=0, le=1)] = 1.0
    rows: Annotated[Rows, Meta(description="At most so many; 0: no limit.")] = 0


class BalanceSpec(_Part, frozen=True):
    """How many rows of each class a split keeps, after the split: other splits mirror the world."""

    splits: Annotated[Columns, Meta(min_length=1, description="The splits to balance, most often train alone.")]
    column: Annotated[str, Meta(description="The column of classes; the label if empty.")] = ""
    rows_per_class: Annotated[Rows, Meta(description="At most so many rows of a class; 0: no limit.")] = 0
    undersample: Annotated[bool, Meta(description="Give every class as many rows as the rarest one.")] = False
    weights: Annotated[str, Meta(description="Column for oversampling: how often a row counts so that classes are even.")] = ""


class SplitSpec(_Part, frozen=True):
    """Shares of the splits, and which rows stay together."""

    shares: dict[str, float] = msgspec.field(default_factory=lambda: {"train": 0.8, "validation": 0.1, "test": 0.1})
    group: Annotated[Columns, Meta(description="Rows of equal values stay in one split; derived columns too.")] = ("device",)
    expression: Annotated[str, Meta(max_length=MAX_EXPRESSION_CHARS, description="Groups by what it gives, besides.")] = ""
    block: Duration = ""
    gap: Duration = ""
    stratify: Annotated[Columns, Meta(description="Columns of classes that every split must hold.")] = ()


class NearDuplicateSpec(_Part, frozen=True):
    """Pictures whose perceptual hashes are alike: kept in one split, or left out but for the first."""

    column: Column = "image_phash"
    bits: Annotated[int, Meta(ge=0, le=16, description="Of the hash's 64 bits, so many may differ.")] = 6
    within: Annotated[Duration, Meta(description="Only rows of one device this near in time; empty: all rows of the set.")] = (
        "10 s"
    )
    action: Literal["group", "drop"] = "group"


class ShardSpec(_Part, frozen=True):
    """How large a file of the set may become."""

    max_rows: Annotated[int, Meta(ge=1, le=100_000_000)] = 1_000_000
    max_mib: Annotated[int, Meta(ge=1, le=65_536)] = 256


class SetSpec(_Part, frozen=True, kw_only=True):
    """The whole document."""

    id: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_-]{0,62}$", description="Name of the set.")]
    sources: Annotated[tuple[SourceSpec, ...], Meta(min_length=1, max_length=MAX_PARTS)]
    description: Text = ""
    owner: Text = ""
    joins: Annotated[tuple[JoinSpec, ...], Meta(max_length=MAX_PARTS)] = ()
    derive: Annotated[tuple[DerivedSpec, ...], Meta(max_length=MAX_PARTS)] = ()
    where: Annotated[Rule, Meta(description="Only rows for which it is true; reads joined and derived columns too.")] = ""
    columns: Annotated[Columns, Meta(description="The columns to keep; all if empty.")] = ()
    payload: Annotated[
        bool | None, Meta(description="Whether samples carry their payload; if left out: where they have one.")
    ] = None
    label: LabelSpec | None = None
    near_duplicates: NearDuplicateSpec | None = None
    caps: Annotated[tuple[CapSpec, ...], Meta(max_length=MAX_PARTS)] = ()
    sample: SampleSpec = SampleSpec()
    split: SplitSpec = SplitSpec()
    balance: BalanceSpec | None = None
    order: Annotated[Literal["shuffled", "time"], Meta(description="How rows lie: shuffled, or by device and time.")] = "shuffled"
    shards: ShardSpec = ShardSpec()
    format: Literal["parquet"] = "parquet"
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0

    def __post_init__(self) -> None:
        added = [name for join in self.joins for name in join.gives] + [each.name for each in self.derive]
        twice = sorted({name for name in added if added.count(name) > 1})
        if twice:
            raise SpecValueError(f"column {', '.join(twice)} is given twice; rename one, or give a join a prefix")
        if len({source.title for source in self.sources}) != len(self.sources):
            raise SpecValueError("a stream or set is named twice under sources")
        if self.balance is not None and not (self.balance.column or self.label):
            raise SpecValueError("balance needs a column of classes, or a label")
        for split in () if self.balance is None else self.balance.splits:
            if split not in self.split.shares:
                raise SpecValueError(f"balance names split {split!r}; there are {', '.join(self.split.shares)}")

    @property
    def version(self) -> str:
        """The first 12 hexadecimal digits of the SHA-256 of the content."""
        return hashlib.sha256(encode_json(self)).hexdigest()[:12]
