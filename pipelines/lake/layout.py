"""Where things lie below the lake root. Names only; nothing here touches the disk."""

from pathlib import Path

RUNS = "runs"
LANDING = "landing"
OBJECTS = "objects"
STREAMS = "streams"
PAYLOAD = "payload"
CHIPS = "chips"
SETS = "sets"
LABELS = "labels"
SET_DRAFT = ".build-"
SET_NUMBERS = ".numbers"
QUALITY = "quality"
QUARANTINE = "quarantine"
QUARANTINE_CLOSED = "quarantine_closed"
COMMITS = "commits"
REQUESTS = "requests"
ROLLUPS = "rollups"
ARCHIVE = "archive"
REMOVED = "removed"
REPLAYS = ".replay"
STALE = "runs/stale"
CUT_REQUESTS = "chips/requests"


def plan_path(root: Path, run: int) -> Path:
    """What run `run` has set out to do."""
    return root / RUNS / f"{run:012d}.json"


def prepared_path(root: Path, run: int) -> Path:
    """The files that run `run` has written and not yet committed."""
    return root / RUNS / f"{run:012d}.prepared.json"


def failed_path(root: Path, run: int) -> Path:
    """Why run `run` could not be prepared, when it was last tried."""
    return root / RUNS / f"{run:012d}.failed.json"


def faults_path(root: Path) -> Path:
    """Faults of our own that the last runs met in a row; there only while there are any."""
    return root / RUNS / "faults.json"


def receipt_pages_path(root: Path) -> Path:
    """Which devices' receipts may have further pages retained on the broker; there only once one had."""
    return root / RUNS / "receipt_pages.json"


def cut_prefix(cut: int) -> str:
    """How the names of all files begin that cut `cut` makes."""
    return f"cut-{cut:012d}"


def cut_folder(cut: int) -> str:
    """The rows of finished bands and slides of a cut that is not committed yet, relative to the lake root."""
    return f"{CHIPS}/.done/{cut_prefix(cut)}"


def cut_plan_path(root: Path, cut: int) -> Path:
    """What cut `cut` has set out to do; there only until it is committed."""
    return root / RUNS / CHIPS / f"{cut:012d}.json"


def last_cut_path(root: Path) -> Path:
    """The number of the last committed cut, and how far it got with which request."""
    return root / RUNS / CHIPS / "last.json"


def cut_requests_folder(root: Path) -> Path:
    """Slides that wait to be cut into chips."""
    return root / RUNS / CUT_REQUESTS


def ledger_path(root: Path, run: int) -> Path:
    """The settled ranges after run `run`."""
    return root / RUNS / f"{run:012d}.ledger.parquet"


def books_path(root: Path, run: int) -> Path:
    """The books after run `run`."""
    return root / RUNS / f"{run:012d}.books.parquet"


def pins_path(root: Path, digest: str) -> Path:
    """The contracts and policies that plans refer to by digest."""
    return root / RUNS / "pins" / f"{digest}.json"


def removed_path(root: Path, table: str) -> Path:
    """The files that were removed from a table and are kept for readers of its older versions."""
    return root / RUNS / REMOVED / f"{table.replace('/', '.')}.parquet"


def looked_at_path(root: Path, table: str) -> Path:
    """Which files of a table were found to show no private value."""
    return root / "cache" / "private" / f"{table.replace('/', '.')}.json"


def table_states_path(root: Path) -> Path:
    """What the last start found of every table."""
    return root / "cache" / "tables.json"


def requests_folder(root: Path) -> Path:
    """What people ask of the run loop."""
    return root / RUNS / REQUESTS


def stale_path(root: Path, name: str) -> Path:
    """A word that minutes of a stream must be rolled up again."""
    return root / STALE / f"{name}.json"


def maintain_lock_path(root: Path) -> Path:
    """Held by the process that rewrites or deletes files of this lake."""
    return root / RUNS / "maintain.lock"


def retag_lock_path(root: Path, stream: str) -> Path:
    """Held by the process that tags this stream again."""
    return root / "policies" / f".retag-{stream}.lock"


def backfills_folder(root: Path) -> Path:
    """The small lakes that segments are run in once more."""
    return root / RUNS / "backfill"


def lock_path(root: Path) -> Path:
    """Held by the one run loop of this lake."""
    return root / RUNS / "loop.lock"


def landing_folder(root: Path, bridge: str) -> Path:
    """The segments of one bridge."""
    return root / LANDING / bridge


def object_name(digest: str) -> str:
    """A large payload, relative to the lake root."""
    return f"{OBJECTS}/{digest}"


def stream_table(stream: str) -> str:
    """The table of a stream, relative to the lake root."""
    return f"{STREAMS}/{stream}"
