"""Old names of configuration keys: they work for one release, with a warning that names the new one."""

from collections.abc import Mapping
from typing import Any


def rename_keys(document: dict[str, Any], renamed: Mapping[str, str], where: str) -> dict[str, Any]:
    """A configuration document with its old keys under their new names; each is warned of on standard error.

    Args:
        document: as it was read.
        renamed: old to new, each as `section.key`; both in one section.
        where: what the warning calls the document.

    Raises:
        ValueError: old and new are both given.
    """
    done = dict(document)
    for old, new in renamed.items():
        section, old_key = old.split(".")
        new_key = new.split(".")[1]
        found = done.get(section)
        if not isinstance(found, dict) or old_key not in found:
            continue
        if new_key in found:
            raise ValueError(f"{old} is now {new}, and both are given; keep {new}")
        from catchment.runtime.output import say  # noqa: PLC0415  # brings the command line, which a worker has no use for

        say(f"warning: {where}: {old} is now {new}; the old name works until the next release", err=True)
        done[section] = {(new_key if key == old_key else key): value for key, value in found.items()}
    return done
