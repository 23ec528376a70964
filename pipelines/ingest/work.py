"""What travels through the graph: a work item in, its result out. Small references; rows never leave a step."""

import msgspec

from pipelines.config import RemoteConfig
from pipelines.ingest.plan import SegmentRef
from pipelines.lake.files import NewFile


class Limits(msgspec.Struct, frozen=True):
    """How large one envelope may be unpacked, one row be, one image be cut, one table grow before it is written.

    `worker_memory_bytes` is what a child process may have of memory of its own; 0: no limit.
    """

    max_envelope_bytes: int
    max_row_bytes: int
    max_image_pixels: int = 20_000_000_000
    flush_bytes: int = 256 * 1024 * 1024
    worker_memory_bytes: int = 0


class Unadmitted(msgspec.Struct, frozen=True):
    """A message, by its place in a work item, of which admission lets nothing or not all become rows.

    `spans` are the seqs to quarantine at `stage`; none: the whole message is, under no stream, and none of its seqs is settled.
    """

    segment: int
    message: int
    stage: str
    reason: str
    spans: tuple[tuple[int, int], ...] = ()


class Work(msgspec.Struct, frozen=True):
    """Some neighbouring segments of a plan, and which seqs of each of their messages are fresh.

    `verdicts[s][m]` belongs to message m of segment s, counted over its batches. `careful` asks that each message be named
    before it is opened; those at the places in `poison` are refused unopened: they ended the process that opened them.
    """

    root: str
    run: int
    at_us: int
    pins: str
    item: int
    segments: tuple[SegmentRef, ...]
    fresh_by_place: tuple[tuple[tuple[tuple[int, int], ...], ...], ...]
    limits: Limits
    careful: bool = False
    poison: tuple[tuple[int, int], ...] = ()
    remote: RemoteConfig | None = None
    unadmitted: tuple[Unadmitted, ...] = ()


class Settled(msgspec.Struct, frozen=True):
    """How many fresh samples of one device's stream an item committed and quarantined."""

    device: str
    stream: str
    committed: int
    quarantined: int


class RefusalCount(msgspec.Struct, frozen=True):
    """How many samples of one device's stream an item refused for one kind of reason."""

    device: str
    stream: str
    reason: str
    count: int


class Failure(msgspec.Struct, frozen=True):
    """Why an item could not be settled. `kind` names what the reader does next: away, corrupt, refused or fault."""

    kind: str
    text: str
    trace: str = ""


class Faults(msgspec.Struct, frozen=True):
    """Messages refused whole because our own code failed on them: how many, of which devices, and one of the faults."""

    refused: int = 0
    devices: tuple[str, ...] = ()
    reason: str = ""


class ItemResult(msgspec.Struct, frozen=True):
    """The files an item wrote and its share of the books, or why it did not come to its end. `messages` have fresh seqs."""

    item: int
    files: tuple[NewFile, ...]
    settled: tuple[Settled, ...]
    failure: Failure | None = None
    messages: int = 0
    faults: Faults = Faults()
    refusals: tuple[RefusalCount, ...] = ()


class Prepared(msgspec.Struct, frozen=True):
    """All items of a run, done: from here on a run only commits."""

    run: int
    items: tuple[ItemResult, ...]

    def files(self) -> list[NewFile]:
        """Every file, by table and name."""
        return sorted((file for item in self.items for file in item.files), key=lambda file: (file.table, file.path))
