"""A model on this device: its settings, and the messages to the processes that check and run it."""

import re
from typing import Literal

import msgspec

from edge_agent.errors import ConfigError
from edge_agent.models.local_consumers import ConsumerConfig
from schemas.ids import StreamName
from schemas.model import MAX_MODEL_BYTES, MODEL_ANSWER_MS, MODEL_LOAD_S, MODEL_MEMORY_MIB, ModelSpec
from schemas.rollout import MODEL_NAME, Desired

MIN_MEMORY_MIB = 96  # what the runtime takes before any model
MAX_MS = 600_000
MAX_LOAD_S = 600
_PREFIX = re.compile(r"([a-z][a-z0-9_]{0,30})?")


class ModelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model of a device.

    Attributes:
        name: the model's name in the repository.
        root: path of the trusted TUF root metadata (`root.json`), brought to the device with its certificate.
        streams: the streams whose samples it looks at.
        probation_s: how long a new version is watched before the old one is given up.
        self_test: whether a new version must answer the golden input before it is activated.
        labels: what its answers mean; empty: as the signed metadata say.
        max_bytes: the largest model this device takes.
        max_failures: so many failed inferences in a row during probation bring the old version back.
        max_starts: so many abnormal ends of the agent during one probation do so, too: the model may be what kills it.
        max_memory_mib: private memory of the model's process, runtime and picture included.
        max_ms: how long one picture may take; the process is ended after that.
        max_load_s: how long loading may take.
        max_waiting: samples that may wait for the model; beyond that they are stored without a prediction, and counted.
        max_held_mib: payloads that may wait behind the one the model looks at.
        when_busy: "skip": capture never waits for the model. "wait": it does, and every sample gets its prediction; for
            sources that lose nothing by that, such as a folder.
        prefix: begins the names of its columns, so that several models can look at one stream.
        after: the model of this device whose boxes it looks at, instead of the whole picture. Only a classifier can.
        max_crops: so many of the best boxes it looks at.
        shadow_frames: pictures on which a new version is compared with the one that answers, before it takes over; 0: none.
            Both processes run meanwhile.
        shadow_every: it looks at every so manieth picture.
        shadow_cpu_share: of the time, what it may take for that.
        notify: programs on this device that get each answer at once.
    """

    name: str
    root: str
    streams: tuple[str, ...]
    probation_s: float = 600.0
    self_test: bool = True
    labels: tuple[str, ...] = ()
    max_bytes: int = MAX_MODEL_BYTES
    max_failures: int = 5
    max_starts: int = 3
    max_memory_mib: int = MODEL_MEMORY_MIB
    max_ms: int = MODEL_ANSWER_MS
    max_load_s: float = MODEL_LOAD_S
    max_waiting: int = 256
    max_held_mib: int = 8
    when_busy: Literal["skip", "wait"] = "skip"
    prefix: str = ""
    after: str = ""
    max_crops: int = 16
    shadow_frames: int = 0
    shadow_every: int = 10
    shadow_cpu_share: float = 0.2
    notify: tuple[ConsumerConfig, ...] = ()

    def __post_init__(self) -> None:
        if not MODEL_NAME.fullmatch(self.name):
            raise ConfigError(f"model name {self.name[:80]!r} must be of a-z, 0-9, '_' and '-', starting with a letter")
        for stream in self.streams:
            StreamName(stream)
        if self.probation_s < 0 or min(self.max_bytes, self.max_failures, self.max_starts) < 1:
            raise ConfigError(f"model {self.name}: probation_s, max_bytes, max_failures and max_starts must be positive")
        if self.max_memory_mib < MIN_MEMORY_MIB:
            raise ConfigError(f"model {self.name}: max_memory_mib {self.max_memory_mib} must be {MIN_MEMORY_MIB} or more")
        if min(self.max_waiting, self.max_held_mib, self.max_crops) < 1:
            raise ConfigError(f"model {self.name}: max_waiting, max_held_mib and max_crops must be positive")
        if self.shadow_frames < 0 or self.shadow_every < 1 or not 0 < self.shadow_cpu_share <= 1:
            raise ConfigError(f"model {self.name}: shadow_frames from 0, shadow_every from 1, shadow_cpu_share within 0 and 1")
        if not _PREFIX.fullmatch(self.prefix):
            raise ConfigError(
                f"model {self.name}: prefix {self.prefix[:40]!r} must be of a-z, 0-9 and '_', and start with a letter"
            )
        if not 1 <= self.max_ms <= MAX_MS or not 0 < self.max_load_s <= MAX_LOAD_S:
            raise ConfigError(f"model {self.name}: max_ms must be within 1 and {MAX_MS}, max_load_s within 0 and {MAX_LOAD_S}")


DECODED = b"decoded"
"""The note of the model's process once a picture is decoded: what happens after it is the model's doing, not the picture's."""


class LoadOptions(msgspec.Struct, frozen=True):
    """What the model's process loads."""

    path: str
    spec: ModelSpec
    labels: tuple[str, ...] = ()


class GoldenRequest(msgspec.Struct, frozen=True, tag="golden"):
    """Ask for the answers to the golden input: a list of numbers."""


class PictureRequest(msgspec.Struct, frozen=True, tag="picture"):
    """Ask about a picture, given as bytes or, where it is large, as the path of a file; with `crops`, about each of them.

    The answer is a list of columns and values, one for each crop or for the picture.
    """

    body: bytes = b""
    path: str = ""
    crops: tuple[tuple[float, float, float, float], ...] = ()


class RowsRequest(msgspec.Struct, frozen=True, tag="rows"):
    """Ask about rows, with a value for each column of the model; the answer is a list of columns and values, one for each."""

    rows: tuple[tuple[float | None, ...], ...]


Request = GoldenRequest | PictureRequest | RowsRequest


class TrustOptions(msgspec.Struct, frozen=True):
    """Options of the process that checks signatures.

    Attributes:
        root: the trusted root metadata's bytes.
        metadata: folder where the newest metadata are kept, which is what makes going back detectable.
        fetched: folder of the files that the agent fetched for this check.
        max_bytes: the largest model taken.
    """

    root: bytes
    metadata: str
    fetched: str
    max_bytes: int


class TrustRequest(msgspec.Struct, frozen=True):
    """Ask whether the keys vouch for a model.

    Attributes:
        desired: which model.
        files: path in the repository -> name of its file in `fetched`; empty where the repository does not have it.
        into: where the model's bytes go once they are verified; empty: only its metadata are checked.
    """

    desired: Desired
    files: dict[str, str]
    into: str = ""


class FileNeeded(msgspec.Struct, frozen=True, tag="file_needed"):
    """The check cannot go on without this file of the repository, of which at most so many bytes are taken."""

    path: str
    max_bytes: int


class Vouched(msgspec.Struct, frozen=True, tag="vouched"):
    """The keys vouch for the model: its SHA-256, and what they say it is."""

    digest: str
    spec: ModelSpec


class Distrusted(msgspec.Struct, frozen=True, tag="distrusted"):
    """The model is not taken: the error's class, and why."""

    kind: str
    reason: str


TrustAnswer = FileNeeded | Vouched | Distrusted
