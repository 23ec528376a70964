"""Old names of commands and configuration keys: they work for one release, with a warning that names the new one."""

from collections.abc import Mapping
from typing import Any, ClassVar

from typer.core import TyperGroup

from catchment.runtime.output import say


class RenamedCommands(TyperGroup):
    """A group whose commands can still be called by their old names."""

    renamed: ClassVar[Mapping[str, str]] = {}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that is called; by its new name if an old one was typed."""
        new = self.renamed.get(args[0]) if args else None
        if new is None:
            return super().resolve_command(ctx, args)
        say(f"warning: the command `{args[0]}` is now `{new}`; the old name works until the next release", err=True)
        return super().resolve_command(ctx, [new, *args[1:]])


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
        say(f"warning: {where}: {old} is now {new}; the old name works until the next release", err=True)
        done[section] = {(new_key if key == old_key else key): value for key, value in found.items()}
    return done
