"""Perplexity by the needle's depth: the best methods as lines, all of them as a heat map."""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from results.plots import Axis, Plot, Scale, Series, plot_html, scale_of, tick_text
from results.report_parts.factor_curves import style
from results.report_parts.markup import Cell, element, perplexity_text, section, short_text, table
from results.report_parts.record import RunRecord, Shown

NUM_BINS = 8
"""Ranges of depth."""
NUM_LINES = 4
"""Methods on the plot of lines."""


class DepthRow(NamedTuple):
    """A method and its perplexity in each range of depth."""

    shown: Shown
    """The method."""
    perplexities: npt.NDArray[np.float64]
    """Shape (NUM_BINS,); NaN where no needle lay or a document failed."""
    classes: str
    """Of its line."""


def depth_html(record: RunRecord) -> str:
    """Return both figures; nothing where no method was measured on the documents that are compared."""
    rows = depth_rows(record)
    if not rows:
        return ""
    return section("Depth", _lines(record, rows[:NUM_LINES]), _heat_map(record, rows))


def depth_rows(record: RunRecord) -> list[DepthRow]:
    """Return each method's perplexity by depth, the mean taken over losses; the winner and the best ones first."""
    frame = record.losses
    bins = np.minimum((frame["depth"].to_numpy() * NUM_BINS).astype(int), NUM_BINS - 1)
    found = []
    for number, shown in enumerate(record.one_per_method):
        is_its = (frame["candidate"] == shown.key).to_numpy()
        if is_its.any():
            losses, places = frame["loss"].to_numpy()[is_its], bins[is_its]
            row = [float(losses[places == one].mean()) if (places == one).any() else math.nan
                   for one in range(NUM_BINS)]  # fmt: skip
            with np.errstate(over="ignore"):
                perplexities = np.exp(np.array(row))
            found.append(DepthRow(shown, perplexities, style(number, is_winner=shown.is_winner)))
    return found


def _lines(record: RunRecord, rows: list[DepthRow]) -> str:
    centres = [(number + 0.5) / NUM_BINS for number in range(NUM_BINS)]
    scale = scale_of([value for row in rows for value in row.perplexities])
    worst = {row.shown.label: _worst(row) for row in rows}
    plot = Plot(
        title=f"Perplexity by the needle's depth, {_which(record)}",
        description="; ".join(f"{label} is worst at depth {depth}" for label, depth in worst.items() if depth) + ".",
        x=Axis("depth of the needle, 0 is the start of the document", Scale(0.0, 1.0), _depth_ticks()),
        y=Axis.of("perplexity", scale),
        series=[
            Series(
                label=row.shown.label,
                points=list(zip(centres, map(float, row.perplexities), strict=True)),
                classes=row.classes,
            )
            for row in rows
        ],
    )
    return plot_html(plot)


def _depth_ticks() -> tuple[tuple[float, str], ...]:
    return tuple((number / 4, tick_text(number / 4)) for number in range(5))


def _heat_map(record: RunRecord, rows: list[DepthRow]) -> str:
    with np.errstate(divide="ignore", invalid="ignore"):
        heats = np.log(np.log(np.stack([row.perplexities for row in rows])))  # losses differ by factors
    finite = heats[np.isfinite(heats)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    header = ("method", *(f"{number / NUM_BINS:.2g}-{(number + 1) / NUM_BINS:.2g}" for number in range(NUM_BINS)))
    cells = [
        [Cell(row.shown.label), *(_cell(float(value), heat, low, high) for value, heat in zip(*both, strict=True))]
        for row, *both in zip(rows, (row.perplexities for row in rows), heats, strict=True)
    ]
    marked = next((number for number, row in enumerate(rows) if row.shown.is_winner), None)
    caption = f"Perplexity by method and depth, {_which(record)}: the stronger the colour, the worse"
    shown = table(caption, header, cells, classes="numbers heat", marked=marked)
    return shown + element("p", "Depth is where the needle lies; the mean where there are several.", classes="small")


def _cell(value: float, heat: float, low: float, high: float) -> Cell:
    if math.isnan(value):
        return Cell("-")
    share = 1.0 if math.isinf(heat) and heat > 0 else min(max((heat - low) / ((high - low) or 1.0), 0.0), 1.0)
    text = short_text(value) if value >= 10 else f"{value:.3f}"
    return Cell(text, f"--a:{0.75 * share:.2f}")


def _which(record: RunRecord) -> str:
    return "held-out documents" if record.split == "heldout" else "search documents"


def _worst(row: DepthRow) -> str:
    if not np.isfinite(row.perplexities).any():
        return ""
    place = int(np.nanargmax(row.perplexities))
    return f"{(place + 0.5) / NUM_BINS:.2g} with {perplexity_text(float(row.perplexities[place]))}"
