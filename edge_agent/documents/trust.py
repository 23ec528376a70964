"""Read the keys that a device trusts, from its configuration and the key file that enrolment wrote."""

from dataclasses import dataclass
from pathlib import Path

import structlog

from catchment.runtime.atomic_files import write_atomic
from edge_agent.config import AgentConfig
from edge_agent.errors import ConfigError
from edge_agent.sections import MAX_KEYS
from schemas.signed_document import PUBLIC_KEY_HEX

KEY_FILE_NAME = "director.pub"
_MAX_FILE_BYTES = 4_096

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class DocumentTrust:
    """Trusted public keys in hexadecimal, the device's id, and the cohorts it was configured to be in."""

    keys: tuple[str, ...]
    device: str
    cohorts: frozenset[str] = frozenset()


def director_trust(config: AgentConfig) -> DocumentTrust | None:
    """Return the trust in every kind of document; None where `[director]` is absent.

    A key file that cannot be read gives no keys: the device captures and delivers, and follows no order until it can.
    """
    director = config.director
    if director is None:
        return None
    keys = director.public_keys
    if director.file is not None:
        try:
            keys = (*keys, *read_key_file(director.file))
        except ConfigError as error:
            log.error("director_keys_unreadable", error=str(error))  # noqa: TRY400  # the reason says it all
    return DocumentTrust(tuple(dict.fromkeys(keys)), config.device, frozenset(director.cohorts))


def rules_trust(config: AgentConfig) -> DocumentTrust | None:
    """Return the trust in rules: the director's keys and those of `[policy]`; None without either."""
    trust = director_trust(config)
    if config.policy is None:
        return trust
    of_director, cohorts = ((), frozenset[str]()) if trust is None else (trust.keys, trust.cohorts)
    return DocumentTrust(tuple(dict.fromkeys((*of_director, *config.policy.keys))), config.device, cohorts)


def read_key_file(path: Path) -> tuple[str, ...]:
    """Read public keys: 64 hexadecimal digits a line; what follows a `#` is a remark.

    Raises:
        ConfigError: the file cannot be read, or does not hold 1 to 4 keys and nothing else.
    """
    try:
        with path.open("rb") as file:
            return parse_keys(file.read(_MAX_FILE_BYTES + 1).decode("ascii"))
    except OSError as error:
        raise ConfigError(f"director.file {path}: {error.strerror}; `edge-agent enrol --director` writes it") from error
    except ValueError as error:
        raise ConfigError(f"director.file {path}: {error}; `catchment director show` prints the keys") from error


def write_key_file(path: Path, keys: str) -> tuple[str, ...]:
    """Write the director's keys where `[director] file` finds them, in place of those that were there.

    Args:
        path: the file.
        keys: public keys, separated by blanks or commas; or the name of a file that holds them.

    Returns:
        The keys.

    Raises:
        ConfigError: not 1 to 4 public keys, nor a file of them.
        OSError: the file cannot be written.
    """
    words = keys.replace(",", " ").split()
    if all(PUBLIC_KEY_HEX.fullmatch(word) for word in words):
        try:
            found = parse_keys("\n".join(words))
        except ValueError as error:
            raise ConfigError(f"--director {error}") from error
    else:
        found = read_key_file(Path(keys))
    write_atomic(path, "".join(f"{key}\n" for key in found).encode(), mode=0o644)
    return found


def parse_keys(text: str) -> tuple[str, ...]:
    """Read public keys from text, as `read_key_file` does.

    Raises:
        ValueError: not 1 to 4 keys.
    """
    if len(text) > _MAX_FILE_BYTES:
        raise ValueError(f"more than {_MAX_FILE_BYTES} bytes")
    keys = tuple(key for line in text.splitlines() if (key := line.partition("#")[0].strip()))
    wrong = [key for key in keys if not PUBLIC_KEY_HEX.fullmatch(key)]
    if wrong:
        raise ValueError(f"{wrong[0][:80]!r} is not a public key of 64 lower-case hexadecimal digits")
    if not 0 < len(keys) <= MAX_KEYS:
        raise ValueError(f"holds {len(keys)} keys, not 1 to {MAX_KEYS}")
    return keys
