"""The language of models going back: what a device should run, and how it asks for the bytes.

Desired state travels as a signed document of kind `desired`; it alone installs nothing: the device fetches TUF metadata
by the request below and installs only a target that the signing keys vouch for (DESIGN promise 9).
"""

import re

import msgspec

from schemas.errors import SchemaError
from schemas.ids import encode_json
from schemas.signed_document import SignedMessage, encode_message

MODEL_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
REPOSITORY_FILE = re.compile(r"(metadata|targets)/[A-Za-z0-9][A-Za-z0-9._-]{0,200}(/[A-Za-z0-9][A-Za-z0-9._-]{0,200})?")
MAX_PIECE_BYTES = 256 * 1024
MAX_DESIRED_BYTES = 65_536
MAX_DESIRED_MODELS = 16

# User properties of a reply on models/data/<device>; the request travels as its correlation data.
TOTAL_PROPERTY = "total"
STATUS_PROPERTY = "status"
STATUS_OK = "ok"
STATUS_MISSING = "missing"
STATUS_REFUSED = "refused"


class Desired(msgspec.Struct, frozen=True):
    """The model a device should run: `target` is the TUF target path of version `version` of model `name`."""

    rollout: str
    name: str
    version: int
    target: str
    issued_ms: int

    def __post_init__(self) -> None:
        if not MODEL_NAME.fullmatch(self.name) or self.version < 1:
            raise SchemaError(f"desired model {self.name[:80]!r} version {self.version} is malformed")
        if not REPOSITORY_FILE.fullmatch(f"targets/{self.target}"):
            raise SchemaError(f"desired target {self.target[:80]!r} is malformed")


class DesiredModels(msgspec.Struct, frozen=True):
    """The body of a signed document of kind `desired`: all models that a device should run; one that is not listed is not wanted.

    Raises:
        SchemaError: too many models, or one is named twice.
    """

    models: tuple[Desired, ...]

    def __post_init__(self) -> None:
        names = {model.name for model in self.models}
        if len(self.models) > MAX_DESIRED_MODELS or len(names) != len(self.models):
            raise SchemaError(f"a device runs at most {MAX_DESIRED_MODELS} models, each wanted once")

    def of(self, name: str) -> Desired | None:
        """Return the desired state of the model with this name; None: no wish."""
        return next((model for model in self.models if model.name == name), None)


class PieceRequest(msgspec.Struct, frozen=True):
    """Bytes `[offset, offset + length)` of a repository file (`metadata/…` or `targets/…`)."""

    path: str
    offset: int
    length: int

    def __post_init__(self) -> None:
        if not REPOSITORY_FILE.fullmatch(self.path):
            raise SchemaError(f"repository file {self.path[:80]!r} is malformed")
        if self.offset < 0 or not 0 < self.length <= MAX_PIECE_BYTES:
            raise SchemaError(f"piece of {self.length} bytes at {self.offset} is outside 1..{MAX_PIECE_BYTES}")


def encode_desired(desired: Desired) -> bytes:
    """The JSON bytes to publish."""
    return encode_json(desired)


def decode_desired(body: bytes) -> Desired:
    """Read a desired state.

    Raises:
        SchemaError: not a desired state.
    """
    try:
        return msgspec.json.decode(body[:MAX_DESIRED_BYTES], type=Desired)
    except msgspec.MsgspecError as error:
        raise SchemaError(f"not a desired state: {error}") from error


def encode_signed_desired(signed: SignedMessage, models: DesiredModels) -> bytes:
    """The JSON bytes to publish, retained. Agents of the release before read one model next to it, unsigned."""
    older = msgspec.to_builtins(models.models[0]) if len(models.models) == 1 else {}
    return encode_message(signed, older)


def encode_piece_request(request: PieceRequest) -> bytes:
    """The JSON bytes to publish."""
    return encode_json(request)


def decode_piece_request(body: bytes) -> PieceRequest:
    """Read a request for a piece.

    Raises:
        SchemaError: not such a request.
    """
    try:
        return msgspec.json.decode(body[:65_536], type=PieceRequest)
    except msgspec.MsgspecError as error:
        raise SchemaError(f"not a piece request: {error}") from error
