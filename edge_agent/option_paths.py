"""Which options of a source name files, and where relative ones start: at the folder of the configuration file. Pure."""

from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

# kind -> the options that name files or folders. Those of a plug-in are its own.
_PATHS: dict[str, tuple[str, ...]] = {
    "can": ("log", "dbc", "dbc_by_channel"),
    "directory": ("path", "sidecars", "masks", "attributes"),
    "mqtt-local": ("password_file", "ca"),
    "replay": ("path",),
    "syslog": ("cert", "key", "client_ca"),
    "tail": ("path",),
    "zeek": ("path",),
}


def resolve_paths(kind: str, options: Mapping[str, object], folder: Path) -> dict[str, object]:
    """The options with absolute paths."""
    resolved = dict(options)

    def place(value: str) -> str:
        return str(folder / value) if value and not value.startswith("/") else value

    for name in _PATHS.get(kind, ()):
        if name in resolved:
            resolved[name] = _each(resolved[name], place)
    source, command = resolved.get("source"), resolved.get("command")
    if kind == "camera" and isinstance(source, str) and "://" not in source and "format" not in resolved:
        resolved["source"] = place(source)
    if kind == "exec" and isinstance(command, list) and command and isinstance(command[0], str) and "/" in command[0]:
        # A bare name is looked for on PATH, as ever.
        resolved["command"] = [place(command[0]), *command[1:]]
    return resolved


def is_same_path(stored: str, now: str) -> bool:
    """Whether a path kept in a position, by an agent that took relative paths as they were, means the one in use now."""
    if stored == now:
        return True
    return (
        not stored.startswith("/")
        and PurePosixPath(now).parts[-len(PurePosixPath(stored).parts) :] == PurePosixPath(stored).parts
    )


def _each(value: object, place: Callable[[str], str]) -> object:
    if isinstance(value, str):
        return place(value)
    if isinstance(value, list):
        return [_each(one, place) for one in value]
    if isinstance(value, dict):
        return {key: _each(one, place) for key, one in value.items()}
    return value
