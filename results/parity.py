"""Whether an engine rotates as Ropewalk does: the rows of one verification, their verdicts, and the table of them."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

SAME = "same"
DIFFERS = "differs: "
UNVERIFIED = "not verified here: "
CAPTION = (
    "Each row is one input of an engine that was started as its setting says. Factors: the list that its rotation "
    "is of. inv_freq: largest difference of an inverse frequency, relative; cos, sin: largest difference at "
    "positions 0, 1, both sides of the original length, and the last; both against float64. Logits: how many times "
    "nearer they are to the model with the right factors than to it with any other."
)


@dataclass(frozen=True, kw_only=True)
class ParityRow:
    """What one input of one engine showed."""

    engine: str
    """Its name."""
    version: str = ""
    """Its version, where it was found."""
    setting: str = ""
    """How it was started, where that decides."""
    num_tokens: int | None = None
    """Length of the input; None where none was rotated."""
    factors: str = ""
    """The list that it took: short, long, or neither."""
    inv_freq_difference: float = math.nan
    """Largest relative difference of an inverse frequency; NaN where it was not looked at."""
    rotation_difference: float = math.nan
    """Largest difference of cos or sin; NaN where it was not looked at."""
    logits_ratio: float = math.nan
    """Distance to the nearest wrong logits over that to the right ones; NaN where logits were not looked at."""
    verdict: str
    """"same", "differs: " with what and why, or "not verified here: " with the reason."""

    @property
    def differs(self) -> bool:
        """Whether the engine was found to rotate otherwise."""
        return self.verdict.startswith(DIFFERS)


def parity_table(rows: Sequence[ParityRow]) -> Table:
    """Return the rows as a table.

    Args:
        rows: In the order of the table; what stands above it already is left out of a row.

    Returns:
        A table for a rich console, which needs neither colour nor a terminal.
    """
    table = Table(
        title="Rotation of serving engines beside Ropewalk's",
        title_justify="left",
        caption=CAPTION,
        caption_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    for header in ("engine", "version", "started with"):
        table.add_column(header, overflow="fold")
    for header in ("input,\ntokens", "factors", "inv_freq", "cos, sin", "logits"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("verdict", overflow="fold", ratio=1)
    above: tuple[str, ...] = ()
    for row in rows:
        names = (row.engine, row.version, row.setting)
        shown = ("", "", "") if names == above else names
        above = names
        table.add_row(*map(Text, (*shown, *_figures(row), row.verdict)))
    return table


def parity_text(rows: Sequence[ParityRow], *, width: int = 160) -> str:
    """Return the table as plain text: no control codes, no trailing blanks.

    Args:
        rows: In the order of the table.
        width: Columns to fill at most.

    Returns:
        The table's lines, ending in a line break.
    """
    plain = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False, legacy_windows=False)
    with plain.capture() as capture:
        plain.print(parity_table(rows))
    return "".join(f"{line.rstrip()}\n" for line in capture.get().splitlines())


def _figures(row: ParityRow) -> tuple[str, ...]:
    ratio = row.logits_ratio
    return (
        "" if row.num_tokens is None else str(row.num_tokens),
        row.factors,
        _number(row.inv_freq_difference),
        _number(row.rotation_difference),
        "" if math.isnan(ratio) else "equal" if math.isinf(ratio) else f"{ratio:.3g} x",
    )


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.1e}"
