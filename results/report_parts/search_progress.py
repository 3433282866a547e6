"""How the search went on: the loss of each candidate against the forwards spent until it was tried."""

import math
from itertools import accumulate

import numpy as np
import pandas as pd

from results.plots import Axis, Plot, Series, plot_html, scale_of
from results.report_parts.markup import counted, element, section
from results.report_parts.record import Candidate, RunRecord
from rope.methods import METHODS

GRADIENT_FORWARDS = 3
"""Forwards that a gradient counts as."""
WINDOW = 25
"""Candidates of a running median."""


def progress_html(record: RunRecord, *, most_points: int) -> str:
    """Return the plot of the search's progress; nothing where no searched candidate is known.

    Args:
        record: The run.
        most_points: Dots to draw at most, evenly chosen; the line knows all candidates.
    """
    forwards = forwards_before(record.measurements)
    first: dict[str, Candidate] = {}
    for one in record.candidates:
        if one.is_searched and one.key in forwards and one.perplexity >= 1 and not one.is_dropped:
            first.setdefault(one.key, one)
    points = sorted((float(forwards[key]), math.log(one.perplexity)) for key, one in first.items())
    points = [point for point in points if math.isfinite(point[1])]
    if not points:
        return ""
    is_fresh = has_fresh_documents(record.measurements, set(first))
    losses = [loss for _, loss in points]
    tops = [float(np.quantile(losses, 0.99)), *([record_loss] if (record_loss := _formula_loss(record)) else [])]
    down = scale_of([*(loss for loss in losses if loss <= max(tops)), *tops])
    across = scale_of([0.0, points[-1][0]], may_log=False)
    chosen = points[:: math.ceil(len(points) / most_points)]
    line = _running_median(points) if is_fresh else _best_so_far(points)
    line_name = f"running median of {WINDOW} candidates" if is_fresh else "best so far"
    series = [
        Series(label=line_name, points=line, classes="win"),
        Series(label="searched candidate", points=chosen, classes="faint", is_joined=False),
    ]
    if record_loss:
        ends = [(across.low, record_loss), (across.high, record_loss)]
        series.insert(1, Series(label="best formula on its search documents", points=ends, classes="c1 d1"))
    told = "Every generation has documents of its own, so that single losses of two cannot be compared. " * is_fresh
    told += "Losses above the plot lie on its upper edge." * (max(losses) > down.high)
    plot = Plot(
        title="Loss of the searched candidates against forwards spent",
        description=f"{counted(len(points), 'candidate')}; the {line_name} goes from {line[0][1]:.4g} to "
        f"{line[-1][1]:.4g} nats per token. {told}",
        x=Axis.of("forwards of search documents, a gradient counted as three", across),
        y=Axis.of("loss on search documents, nats per token", down),
        series=series,
    )
    return section("Search", plot_html(plot), element("p", told, classes="small") if told else "")


def forwards_before(measurements: pd.DataFrame) -> dict[str, int]:
    """Return the forwards of search documents until each candidate was first measured.

    Args:
        measurements: As `read_measurements`.

    Returns:
        By candidate's key, the forwards spent up to and with its first measurement.
    """
    search = measurements[measurements["split"] == "search"]
    found: dict[str, int] = {}
    for key, total in zip(search["candidate"], accumulate(_weights(search)), strict=True):
        found.setdefault(str(key), total)
    return found


def num_forwards(measurements: pd.DataFrame) -> int:
    """Return the forwards of search documents, a gradient counted as three."""
    return sum(_weights(measurements[measurements["split"] == "search"]))


def has_fresh_documents(measurements: pd.DataFrame, keys: set[str]) -> bool:
    """Return whether candidates were measured on other documents than one another.

    Args:
        measurements: As `read_measurements`.
        keys: The candidates'.
    """
    chosen = measurements[(measurements["split"] == "search") & measurements["candidate"].isin(keys)]
    documents: list[set[object]] = [set(group) for _, group in chosen.groupby("candidate")["document"]]
    return bool(documents) and max(map(len, documents)) < len(set.union(*documents))


def _weights(search: pd.DataFrame) -> list[int]:
    return [1 if gradient is None else GRADIENT_FORWARDS for gradient in search["gradient"]]


def _formula_loss(record: RunRecord) -> float | None:
    known = [one.perplexity for one in record.candidates if one.method in METHODS and not one.is_dropped]
    able = [math.log(value) for value in known if math.isfinite(value) and value > 1]
    return min(able, default=None)


def _best_so_far(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    line = points[:1]
    for x, y in points[1:]:
        best = line[-1][1]
        if y < best:
            line += [(x, best), (x, y)]
    return [*line, (points[-1][0], line[-1][1])]


def _running_median(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    half = WINDOW // 2
    return [
        (x, float(np.median([y for _, y in points[max(0, place - half) : place + half + 1]])))
        for place, (x, _) in enumerate(points)
    ]
