"""Heat maps of needles found, by depth and length, one for each contender."""

import math

from needles.grid import TASK as GRID_TASK
from results.evaluation import BEYOND, mean_scores
from results.report_parts.evaluation_record import EvaluationRecord
from results.report_parts.evaluation_scores import percent_text
from results.report_parts.markup import Cell, counted, element, section, table


def grid_html(record: EvaluationRecord) -> str:
    """Return the heat maps; nothing where the grid was not measured.

    Args:
        record: The evaluation.
    """
    frame = record.scores[record.scores["task"] == GRID_TASK]
    if frame.empty:
        return ""
    # one task for each depth, so that means are taken in each cell
    cells = mean_scores(frame.assign(task=frame["depth"].astype(float)))
    values = {
        (str(name), float(depth), int(length)): (100.0 * float(mean), int(count))
        for name, depth, length, mean, count in zip(
            *(cells[column] for column in ("contender", "task", "length", "mean", "count")), strict=True
        )
    }
    maps = "".join(_map(record, name, values) for name in record.contenders)
    told = "The stronger the colour, the more needles were missed; depth 0 is the start of the text."
    return section("Needle in a haystack", element("p", told, classes="small"), f'<div class="maps">{maps}</div>')


def _map(record: EvaluationRecord, name: str, values: dict[tuple[str, float, int], tuple[float, int]]) -> str:
    own = {(depth, length): value for (owner, depth, length), value in values.items() if owner == name}
    if not own:
        return ""
    lengths = sorted({length for _, length in own})
    header = ("depth", *(f"{length:,}{BEYOND * record.is_beyond(name, length)}" for length in lengths))
    rows: list[list[str | Cell]] = [
        [f"{depth:g}", *(_cell(own.get((depth, length))) for length in lengths)]
        for depth in sorted({depth for depth, _ in own})
    ]
    counts = {count for _, count in own.values()}
    per_cell = counted(min(counts), "sample") if len(counts) == 1 else f"{min(counts)} to {max(counts)} samples"
    caption = f"{name}: needles found by depth and length in tokens, percent; {per_cell} a cell"
    return table(caption, header, rows, classes="numbers heat")


def _cell(value: tuple[float, int] | None) -> Cell:
    if value is None:
        return Cell("-")
    percent, _ = value
    share = 1.0 if math.isnan(percent) else 1 - percent / 100
    text = percent_text(percent) if math.isnan(percent) else f"{percent:.0f}"
    return Cell(text, f"--a:{0.75 * share:.2f}")
