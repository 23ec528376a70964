"""Old names of commands: they work for one release, with a warning that names the new one."""

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
