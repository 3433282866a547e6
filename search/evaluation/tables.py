"""What the terminal's tables share: their look, numbers as text, and room for every digit."""

from collections.abc import Sequence
from copy import copy
from math import isfinite

from rich.console import Console
from rich.table import Table
from rich.text import Text

NOT_FINITE = "not finite"
"""What a table says in place of a number that is none: of an answer whose logits were no numbers no mean is taken."""
_WIDEST = 10_000  # columns; a table's own width is measured inside a console's


def new_table(title: str, labels: Sequence[str], numbers: Sequence[str]) -> Table:
    """Return a table without rows.

    Args:
        title: What it shows.
        labels: Names of the columns on the left, which name what is measured.
        numbers: Names of the others.
    """
    table = Table(title=title, show_edge=False)
    for name in labels:
        table.add_column(name)
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def new_console(width: int | None = None) -> Console:
    """Return a console that shows names as they are, with brackets and colons.

    Args:
        width: Of its lines, characters; default: the terminal's.
    """
    return Console(width=width, markup=False, emoji=False)


def show(console: Console, table: Table) -> None:
    """Print a table with room for every digit, also where lines are shorter than it; without columns its texts alone.

    Args:
        console: As `new_console` returns it; title and caption have the width of its lines.
        table: As `new_table` returns it.
    """
    bare = copy(table)
    bare.title = bare.caption = None
    console.print()
    console.print(Text(str(table.title), style="table.title"))
    if table.columns:
        width = new_console(_WIDEST).measure(bare).maximum
        new_console(max(console.width, width)).print(bare)
    if table.caption:
        console.print(Text(str(table.caption), style="table.caption"))


def number_text(value: float, *, digits: int = 4) -> str:
    """Return a number for people.

    Args:
        value: Any.
        digits: Of it that are shown.
    """
    return f"{value:.{digits}g}" if isfinite(value) else NOT_FINITE


def percent_text(value: float) -> str:
    """Return a percentage for people.

    Args:
        value: Percent.
    """
    return f"{value:.1f}" if isfinite(value) else NOT_FINITE
