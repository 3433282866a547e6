"""The table that ends a run: every method's perplexities, best first."""

import io
import math

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from results.summary import MethodResult, Summary

CAPTION = (
    "Lower is better. * marks the winner: what the validation documents chose among the searched, if it beats every "
    "formula on the held-out documents. Gap: loss on held-out minus loss on search documents, nats. At the original "
    "length the factors are used too; served with a window switch, every method is there what none is at temperature 1."
)

FRONT_CAPTION = (
    "No candidate is better at one length without being worse at the other. K marks the knee: the point farthest below "
    "the line between the front's ends, from which on more at one length costs most at the other."
)


def results_table(summary: Summary) -> Table:
    """Return the methods as a table, lowest held-out perplexity first, those without one last.

    Args:
        summary: What the run found.

    Returns:
        A table for a rich console; it fits 80 columns and needs neither colour nor a terminal.
    """
    lengths = f"{summary.target_length} tokens (original {summary.original_length})"
    table = _empty_table(f"Perplexity of the needles' answers at {lengths}", CAPTION)
    for header in (
        "crit.\ndim.",
        "tempe-\nrature",
        "search\ndocuments",
        "validation\ndocuments",
        "held-out\ndocuments",
        "gap",
        "original\nlength",
    ):
        table.add_column(header, justify="right")
    winner = summary.winning_result
    for result in sorted(summary.methods, key=_rank):
        mark, style = ("*", "bold") if result is winner else ("", None)
        table.add_row(mark, *_cells(result), style=style)
    return table


def to_string(summary: Summary, *, width: int = 80) -> str:
    """Return the table as plain text for a file or a log: no control codes, no trailing blanks.

    Args:
        summary: What the run found.
        width: Columns to fill at most.

    Returns:
        The table's lines, ending in a line break.
    """
    plain = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False, legacy_windows=False)
    with plain.capture() as capture:
        plain.print(results_table(summary))
    return "".join(f"{line.rstrip()}\n" for line in capture.get().splitlines())


def _empty_table(title: str, caption: str) -> Table:
    """Return a table with a column for a mark and one for the method, and none of its numbers yet."""
    table = Table(
        title=title,
        title_justify="left",
        caption=caption,
        caption_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=0,
    )
    table.add_column("", width=1)
    table.add_column("method", overflow="fold")
    return table


def _rank(result: MethodResult) -> float:
    return math.inf if math.isnan(result.heldout_perplexity) else result.heldout_perplexity


def _cells(result: MethodResult) -> tuple[Text, ...]:
    texts = (
        result.name,
        "-" if result.critical_dim is None else str(result.critical_dim),
        f"{result.attention_temperature:.4f}",
        _perplexity(result.search_perplexity),
        _perplexity(result.validation_perplexity),
        _perplexity(result.heldout_perplexity),
        "-" if math.isnan(result.gap) else f"{result.gap:+.3f}",
        _perplexity(result.original_perplexity),
    )
    return tuple(Text(text) for text in texts)


def _perplexity(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.4f}" if value < 100_000 else f"{value:.3e}"


def front_table(summary: Summary) -> Table:
    """Return the Pareto front of a search of two objectives as a table, best at the target length first.

    Args:
        summary: What the run found.

    Returns:
        A table for a rich console; it fits 80 columns.
    """
    table = _empty_table("Pareto front of the search", FRONT_CAPTION)
    for header in ("attention\ntemperature", "perplexity at\ntarget length", "perplexity at original\nlength, ratio"):
        table.add_column(header, justify="right")
    for point in summary.front:
        cells = (f"{point.attention_temperature:.4f}", f"{point.long_perplexity:.4f}", f"{point.short_ratio:.4f}")
        table.add_row("K" if point.is_knee else "", point.name, *cells, style="bold" if point.is_knee else None)
    return table
