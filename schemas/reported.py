"""The report of a device: its books, its epochs, its running model. Retained, so the newest is always known.

The core folds `epochs` into its ledger: a range the device had to drop is settled as dropped (it will never come), and
a closed epoch is known to end at `next_seq`.
"""

import msgspec

from schemas.errors import SchemaError
from schemas.ids import MAX_EPOCH, MAX_SEQ, StreamName, encode_json
from schemas.model_tally import ModelTally

MAX_REPORTED_BYTES = 4 * 1024 * 1024


class DroppedRange(msgspec.Struct, frozen=True):
    """Seqs `[low, high)` that were captured and given up, and why."""

    low: int
    high: int
    reason: str


class EpochReport(msgspec.Struct, frozen=True):
    """One epoch of one stream: seqs below `next_seq` were given out; `closed` means that no more will be."""

    stream: str
    epoch: int
    next_seq: int
    closed: bool
    dropped: tuple[DroppedRange, ...] = ()


class StreamBooks(msgspec.Struct, frozen=True):
    """The device's books of one stream, over its whole life. Promise 3: captured = settled + spooled + dropped."""

    stream: str
    captured: int
    settled: int
    spooled: int
    dropped: dict[str, int] = {}

    @property
    def is_balanced(self) -> bool:
        """Whether promise 3 holds."""
        return self.captured == self.settled + self.spooled + sum(self.dropped.values())


class ModelFigures(msgspec.Struct, frozen=True):
    """What a model's process takes, and what became of the samples it was to look at.

    Attributes:
        memory_limit_mib: its process may take so much.
        peak_mib: the most it took since it was started; 0: it does not run.
        max_ms: it may take so long for one sample.
        counts: samples by what became of them since the agent started (`inferences`, `failures`, `skipped`, ...), and `deaths`
            of the process.
        delay_p95_ms: of the last answers to programs on the device, the time since capture beyond the model's own that 95 % stay
            below; 0 where there are none.
    """

    memory_limit_mib: int
    peak_mib: int
    max_ms: int
    counts: dict[str, int] = {}
    delay_p95_ms: float = 0.0


class ModelReport(msgspec.Struct, frozen=True):
    """The model a device runs.

    Attributes:
        name: the model's.
        version: the one that runs; 0: none.
        state: `active`, `none`, `rolled_back`, `refused`, or `blocked`: what is wanted cannot be installed for a reason that says
            nothing of the model: network, disk, clock, an expired repository or order.
        reason: why.
        refused: versions never to try again.
        on_probation: whether the version that runs has yet to prove itself.
        figures: of its process; absent from agents of the releases before.
        tallies: sums of the version that runs, and of the one that ran before it.
    """

    name: str
    version: int
    state: str
    reason: str = ""
    refused: tuple[int, ...] = ()
    on_probation: bool | msgspec.UnsetType = msgspec.UNSET  # absent on the wire where it has proved itself
    figures: ModelFigures | msgspec.UnsetType = msgspec.UNSET
    tallies: tuple[ModelTally, ...] | msgspec.UnsetType = msgspec.UNSET  # absent where no version was asked anything


class PolicyReport(msgspec.Struct, frozen=True):
    """The edge rules a device applies.

    Attributes:
        version: of the signed policy in force; 0: none.
        refused: how many policies were refused since the agent started: forged, older, for others, or malformed.
        reason: why the last one was.
        suspended: `stream/rule` -> why that rule is not applied.
        uninspected: `stream/inspector` -> how many samples it could not look at since the agent started; their columns are null.
    """

    version: int = 0
    refused: int = 0
    reason: str = ""
    suspended: dict[str, str] = {}
    uninspected: dict[str, int] | msgspec.UnsetType = msgspec.UNSET  # absent on the wire where there is none


class DocumentReport(msgspec.Struct, frozen=True):
    """The signed documents of one kind that a device took.

    Attributes:
        kind: of the documents.
        counter: of the newest one taken; 0: none.
        refused: how many were refused since the agent started.
        reason: why the last one was, or what it waits for; empty: it was taken.
    """

    kind: str
    counter: int = 0
    refused: int = 0
    reason: str = ""


class Reported(msgspec.Struct, frozen=True):
    """A device's report."""

    device: str
    at_ms: int
    agent_version: str
    books: tuple[StreamBooks, ...] = ()
    epochs: tuple[EpochReport, ...] = ()
    models: tuple[ModelReport, ...] = ()
    policy: PolicyReport | None = None
    documents: tuple[DocumentReport, ...] | msgspec.UnsetType = msgspec.UNSET  # absent where no key is trusted


def encode_reported(reported: Reported) -> bytes:
    """The JSON bytes to publish."""
    return encode_json(reported)


def decode_reported(body: bytes) -> Reported:
    """Read a report.

    Raises:
        SchemaError: not a report, too large, or a name or range in it is malformed.
    """
    if len(body) > MAX_REPORTED_BYTES:
        raise SchemaError(f"report of {len(body)} bytes is above the limit of {MAX_REPORTED_BYTES}")
    try:
        reported = msgspec.json.decode(body, type=Reported)
    except msgspec.MsgspecError as error:
        raise SchemaError(f"not a report: {error}") from error
    for epoch in reported.epochs:
        StreamName(epoch.stream)
        if not 0 <= epoch.epoch <= MAX_EPOCH or not 0 <= epoch.next_seq <= MAX_SEQ:
            raise SchemaError(f"report for {epoch.stream}: epoch and next_seq must be within 0 and 2^63-1")
        for gone in epoch.dropped:
            if not 0 <= gone.low < gone.high <= epoch.next_seq:
                raise SchemaError(f"report for {epoch.stream}: dropped range [{gone.low}, {gone.high}) is not within the epoch")
    return reported
