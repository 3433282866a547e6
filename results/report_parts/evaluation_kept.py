"""What is left of the original model inside its window: its logits, and lm-evaluation-harness's tasks."""

import math

import pandas as pd

from results.report_parts.evaluation_record import EvaluationRecord
from results.report_parts.markup import counted, element, grouped_table, section, short_text
from results.text_loss_tables import retained


def retention_html(record: EvaluationRecord) -> str:
    """Return how far contenders move the original model's logits; nothing where that was not measured.

    Args:
        record: The evaluation.
    """
    if record.retention.empty:
        return ""
    frame = retained(record.retention)
    groups = [
        (name, _servings(frame[frame["contender"] == name]))
        for name in record.contenders
        if (frame["contender"] == name).any()
    ]
    header = ("serving, tokens read", "largest difference", "mean KL, nats", "same top, %", "positions")
    told = (
        "Against the model as it was loaded. Switched: the long factors only beyond the original window, inside it the "
        "short ones where there are any; pinned: the long ones at every length, as an engine with a single list "
        "serves. Exact: every logit is the same, bit for bit. KL: divergence from the original model's next-token "
        "distribution. Same top: positions at which the likeliest token is the same."
    )
    caption = "What is left of the original model's logits inside its window"
    shown = grouped_table(caption, header, groups, classes="numbers")
    return section("Short-window retention", shown, element("p", told, classes="small"))


def harness_html(record: EvaluationRecord) -> str:
    """Return the scores of lm-evaluation-harness; nothing where it was not run.

    Args:
        record: The evaluation.
    """
    if record.harness.empty:
        return ""
    columns = ("task", "version", "num_samples", "metric", "contender", "value", "stderr")
    frame = record.harness.astype({"value": float, "stderr": float})
    groups: dict[str, dict[str, dict[str, str]]] = {}
    for task, version, num, metric, name, value, error in zip(*(frame[one].tolist() for one in columns), strict=True):
        title = f"{task}, version {version}, {counted(int(num), 'sample')}"
        groups.setdefault(title, {}).setdefault(str(metric), {})[str(name)] = _score(float(value), float(error))
    rows = [
        (title, [[metric, *(cells.get(name, "-") for name in record.contenders)] for metric, cells in metrics.items()])
        for title, metrics in groups.items()
    ]
    header = ("metric", *record.contenders)
    told = "Values with their standard errors, as lm-evaluation-harness gives both; a dash: none, or not measured."
    shown = grouped_table("Scores by task and contender", header, rows, classes="numbers")
    return section("lm-evaluation-harness", shown, element("p", told, classes="small"))


def _servings(frame: pd.DataFrame) -> list[list[str]]:
    """Return the rows of one contender: as it is to be served first, short texts first."""
    found = []
    for serving in sorted({*frame["serving"].tolist()}, key=lambda name: (name != "switched", name)):
        own = frame[frame["serving"] == serving].sort_values("length")
        columns = ("length", "largest_difference", "mean_divergence", "same_top", "num_positions")
        for length, largest, divergence, top, positions in zip(*(own[name].tolist() for name in columns), strict=True):
            found.append(
                [
                    f"{serving}, {length:,}",
                    "exact" if largest == 0 else _number(largest),
                    _number(divergence),
                    f"{100 * top:.2f}",
                    f"{positions:,}",
                ]
            )
    return found


def _number(value: float) -> str:
    return "not finite" if math.isnan(value) else short_text(value)


def _score(value: float, error: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.4f}" + ("" if math.isnan(error) else f" ± {error:.4f}")
