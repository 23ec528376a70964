"""A key that never leaves the device, and a request to sign for it. By `cryptography` where it is there, else by openssl."""

import os
import stat
import subprocess
from pathlib import Path
from typing import Protocol

from catchment.runtime.atomic_files import sync_folder, write_atomic
from edge_agent.errors import ConfigError
from schemas.ids import DeviceId, enrolled_id

KEY_NAME = "device.key"
REQUEST_NAME = "device.csr"
_MAX_KEY_BYTES = 64 * 1024
_OPENSSL_WITHIN_S = 60.0
# The command reads a configuration file whatever it is asked; the machine's own must not decide what is in a request.
_PLAIN_CONFIG = "[req]\ndistinguished_name = name\n[name]\n"
_PRIVATE_MODE = 0o600


class Keysmith(Protocol):
    """Makes keys and requests, as PEM."""

    def new_key(self) -> bytes:
        """A new P-256 key."""
        ...

    def request(self, key: bytes, device: DeviceId) -> bytes:
        """A request to sign, in this device's name.

        Raises:
            ConfigError: the key is none.
        """
        ...


def enrol(device: DeviceId, key_path: Path, request_path: Path, smith: Keysmith | None = None) -> bool:
    """Make a key and a request. A key that is there is used again: a lost request, or a renewal, needs no new one.

    Returns:
        Whether the key is new.

    Raises:
        ConfigError: the key that is there is none, or others can read it; or nothing here can make one.
        IdError: the id is the name of one of the core's roles.
        OSError: the files cannot be written.
    """
    device = enrolled_id(device)
    smith = smith or find_keysmith()
    key, is_new = _read_key(key_path), False
    if key is None:
        key, is_new = smith.new_key(), True
        _write_key(key_path, key)
    write_atomic(request_path, smith.request(key, device), mode=0o644)
    return is_new


def find_keysmith() -> Keysmith:
    """Find a way to make keys on this machine.

    Raises:
        ConfigError: it has nothing to.
    """
    try:
        from edge_agent.identity.enrol_cryptography import LibraryKeysmith  # noqa: PLC0415 # the extra `enrol`
    except ImportError:
        return CommandKeysmith()
    return LibraryKeysmith()


class CommandKeysmith:
    """By the openssl command. The key goes through a pipe: it stands in no file but its own, and on no command line."""

    def new_key(self) -> bytes:
        """A new P-256 key."""
        return _openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")

    def request(self, key: bytes, device: DeviceId) -> bytes:
        """A request to sign, in this device's name."""
        reading, writing = os.pipe()
        try:
            os.write(writing, _PLAIN_CONFIG.encode())
            os.close(writing)
            config = f"/dev/fd/{reading}"
            made = ("req", "-new", "-config", config, "-key", "/dev/stdin", "-sha256", "-subj", f"/CN={device}")
            return _openssl(*made, stdin=key, keep=reading)
        finally:
            os.close(reading)


def _openssl(*arguments: str, stdin: bytes = b"", keep: int | None = None) -> bytes:
    kept = () if keep is None else (keep,)
    try:
        done = subprocess.run(
            ["openssl", *arguments], input=stdin, capture_output=True, timeout=_OPENSSL_WITHIN_S, pass_fds=kept, check=False
        )
    except FileNotFoundError as error:
        raise ConfigError("keys need the openssl command, or the `enrol` extra: pip install 'catchment[enrol]'") from error
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"openssl did not end within {_OPENSSL_WITHIN_S:.0f} s") from error
    if done.returncode != 0:
        first_line = done.stderr.decode(errors="replace").strip().partition("\n")[0]
        raise ConfigError(f"openssl {arguments[0]} failed: {first_line[:300]}; is the key a private key in PEM?")
    return done.stdout


def _read_key(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            body = file.read(_MAX_KEY_BYTES)
    except FileNotFoundError:
        return None
    if mode & 0o077:
        raise ConfigError(
            f"{path} can be read by others (mode {mode:04o}): chmod 600 it; if it may have been, delete it for a new one"
        )
    if b"PRIVATE KEY-----" not in body:
        raise ConfigError(f"{path} is there and is no private key in PEM; give another path with --key")
    return body


def _write_key(path: Path, body: bytes) -> None:
    # Never readable by others, not even for a moment, and never over a file that appeared meanwhile.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _PRIVATE_MODE)
    with os.fdopen(descriptor, "wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)
