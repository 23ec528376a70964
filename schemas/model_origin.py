"""Where a model comes from, as it is signed with it."""

import math
import re

import msgspec

from schemas.errors import SchemaError

MAX_METRICS = 64
_SET = re.compile(r"[a-z][a-z0-9_-]{0,62}/[1-9][0-9]{0,9}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,199}")
_METRIC = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/@ -]{0,63}")


class ModelOrigin(msgspec.Struct, frozen=True, omit_defaults=True):
    """The training set, the code and the metrics of a model.

    Attributes:
        training_set: `name/version`; empty: unknown.
        manifest_sha256: of the set's manifest, which names every file of it by its hash.
        code: revision of the code that trained it; empty: unknown.
        metrics: numbers by name.

    Raises:
        SchemaError: a part is malformed, or a set is named without its manifest's hash.
    """

    training_set: str = ""
    manifest_sha256: str = ""
    code: str = ""
    metrics: dict[str, float] = {}

    def __post_init__(self) -> None:
        if bool(self.training_set) != bool(self.manifest_sha256):
            raise SchemaError("an origin names a training set together with the hash of its manifest")
        if self.training_set and not (_SET.fullmatch(self.training_set) and _SHA256.fullmatch(self.manifest_sha256)):
            raise SchemaError(f"origin {self.training_set[:80]!r}: give name/version and a SHA-256 in hexadecimal digits")
        if self.code and not _CODE.fullmatch(self.code):
            raise SchemaError(f"code {self.code[:80]!r} is no revision: up to 200 letters, digits and . _ : / @ + -")
        if len(self.metrics) > MAX_METRICS or not all(_METRIC.fullmatch(name) for name in self.metrics):
            raise SchemaError(f"metrics are up to {MAX_METRICS} numbers with names of up to 64 letters, digits and _ . : / @ -")
        if not all(map(math.isfinite, self.metrics.values())):
            raise SchemaError("a metric is not finite; leave it out")
