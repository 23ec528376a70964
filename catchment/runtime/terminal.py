"""Tables, trees and styled lines on a terminal, with text from outside shown and never obeyed.

No markup is read in any text: what is to be coloured is given as `styled`. A test sees to it that no command prints otherwise.
"""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions
from rich.segment import Segment
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from catchment.runtime.plain import plain, plain_lines, plain_message


def styled(text: object, style: str = "") -> Text:
    """A text in a style, for `PlainConsole` and `PlainTable`; the text itself is never read as markup."""
    return Text(plain(text), style)


def joined(*parts: str | Text) -> Text:
    """Plain and styled texts as one line."""
    return Text.assemble(*(plain(part) if isinstance(part, str) else part for part in parts))


class PlainTable(Table):
    """A table whose cells, headers and title are text as it is, one line each."""

    def __init__(self, *headers: str, title: str | None = None, **layout: Any) -> None:
        super().__init__(*map(plain, headers), title=None if title is None else plain(title), **layout)

    def add_column(self, header: Any = "", *arguments: Any, **layout: Any) -> None:
        """Add a column; `layout` as rich has it."""
        super().add_column(plain(header) if isinstance(header, str) else header, *arguments, **layout)

    def add_row(self, *cells: Any, **layout: Any) -> None:
        """Add a row; whatever is neither text nor None nor styled is shown as text."""
        super().add_row(*(plain(cell) if isinstance(cell, str) else cell for cell in cells), **layout)


class PlainConsole(Console):
    """A console for text from outside: no markup, no emoji names, no character that acts on a terminal.

    Text is made plain where it is taken in, so that columns have the right width, and once more where it goes out, so that
    nothing that was made elsewhere gets past.
    """

    def print(self, *objects: Any, **layout: Any) -> None:
        """Print; of a text with several lines those after the first are indented."""
        super().print(*(plain_message(each) if isinstance(each, str) else each for each in objects), **layout)

    def render_str(self, text: str, **layout: Any) -> Text:
        """A text as it is; whatever asks for markup in it is not heard."""
        return super().render_str(plain_lines(text), **{**layout, "markup": False, "emoji": False})

    def render(self, renderable: Any, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render to text without characters that act on a terminal, except rich's own."""
        for segment in super().render(renderable, options):
            is_ours = segment.control is not None
            yield segment if is_ours else Segment(plain_lines(segment.text), segment.style)


class PlainTree(Tree):
    """A tree whose labels are text as it is, one line each."""

    def __init__(self, label: str | Text) -> None:
        super().__init__(joined(label))

    def add(self, label: Any, **layout: Any) -> Tree:
        """Add a branch."""
        return super().add(joined(label), **layout)


def stacked(lines: Iterable[str | Text]) -> Text:
    """Lines as one text for a cell of a table."""
    return Text("\n").join(joined(line) for line in lines)
