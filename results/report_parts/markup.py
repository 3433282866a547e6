"""Small pieces of HTML; every text that goes in is escaped here."""

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

WIDE = ' class="wide"'
LONG = 100
"""Characters from which on a fact takes the page's whole width."""


class Cell(NamedTuple):
    """A table's cell: its text, and how it looks."""

    text: str
    """Plain text; escaped where it is shown."""
    style: str = ""
    """CSS of the cell, none of it from a user."""


def escaped(text: object) -> str:
    """Return a text as HTML shows it, fit for an attribute too."""
    return html.escape(str(text), quote=True)


def element(name: str, text: object, *, classes: str = "") -> str:
    """Return an element that holds plain text, which is escaped."""
    attribute = f' class="{classes}"' if classes else ""
    return f"<{name}{attribute}>{escaped(text)}</{name}>"


def table(
    caption: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str | Cell]],
    *,
    classes: str = "",
    marked: int | None = None,
) -> str:
    """Return a table whose first column heads its rows; it scrolls by itself where the page is narrow.

    Args:
        caption: What it shows.
        header: One name per column.
        rows: Plain texts, one per column.
        classes: Classes of the table.
        marked: Number of the row to stand out.
    """
    body = "".join(_row(row, "marked" if number == marked else "") for number, row in enumerate(rows))
    return _table(caption, header, f"<tbody>{body}</tbody>", classes)


def grouped_table(
    caption: str, header: Sequence[str], groups: Sequence[tuple[str, Sequence[Sequence[str | Cell]]]], *, classes: str
) -> str:
    """Return a table of groups of rows, each under its name; else as `table`.

    Args:
        caption: What it shows.
        header: One name per column.
        groups: Names with their rows.
        classes: Classes of the table.
    """
    body = "".join(
        f'<tbody><tr class="group"><th scope="rowgroup" colspan="{len(header)}"><span>{escaped(name)}</span></th></tr>'
        f"{''.join(_row(row, '') for row in rows)}</tbody>"
        for name, rows in groups
    )
    return _table(caption, header, body, classes)


def definitions(facts: Sequence[tuple[str, str]]) -> str:
    """Return names and what they stand for, as a list; those that stand for nothing are left out."""
    entries = (
        f"<div{WIDE * (len(value) > LONG)}>{element('dt', name)}{element('dd', value)}</div>"
        for name, value in facts
        if value
    )
    return f"<dl>{''.join(entries)}</dl>"


def section(title: str, *content: str) -> str:
    """Return a section under a heading; nothing where it has no content."""
    told = "".join(content)
    return f"<section>{element('h3', title)}{told}</section>" if told else ""


def perplexity_text(value: float) -> str:
    """Return a perplexity for people: four decimals, fewer for a large one, a dash for NaN."""
    if math.isnan(value):
        return "-"
    return f"{value:.4f}" if value < 100 else f"{value:.1f}" if value < 100_000 else f"{value:.2e}"


def short_text(value: float) -> str:
    """Return a number in three digits, a dash for NaN.

    Example:
        >>> short_text(1396.02), short_text(1.0892)
        ('1400', '1.09')
    """
    if math.isnan(value):
        return "-"
    return f"{float(f'{value:.3g}'):.0f}" if 100 <= abs(value) < 100_000 else f"{value:.3g}"


def counted(number: int, one: str) -> str:
    """Return a number with its noun.

    Example:
        >>> counted(2, "document")
        '2 documents'
    """
    return f"{number:,} {one}{'' if number == 1 else 's'}"


def _table(caption: str, header: Sequence[str], body: str, classes: str) -> str:
    head = "".join(f'<th scope="col">{escaped(name)}</th>' for name in header)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escaped(caption)}">'
        f'<table class="{classes}"><caption><span>{escaped(caption)}</span></caption>'
        f"<thead><tr>{head}</tr></thead>{body}</table></div>"
    )


def _row(row: Sequence[str | Cell], classes: str) -> str:
    cells = [cell if isinstance(cell, Cell) else Cell(cell) for cell in row]
    first = f'<th scope="row">{escaped(cells[0].text)}</th>'
    rest = "".join(f"<td{_style(cell)}>{escaped(cell.text)}</td>" for cell in cells[1:])
    return f'<tr class="{classes}">{first}{rest}</tr>' if classes else f"<tr>{first}{rest}</tr>"


def _style(cell: Cell) -> str:
    return f' style="{cell.style}"' if cell.style else ""
