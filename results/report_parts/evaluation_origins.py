"""Who was compared in an evaluation, and how much was measured in what time."""

import pandas as pd

from results.report_parts.evaluation_record import EvaluationRecord
from results.report_parts.markup import counted, definitions, section, table
from results.report_parts.origins import accelerator_hours, duration


def contenders_html(record: EvaluationRecord) -> str:
    """Return the contenders with what is known of their factors.

    Args:
        record: The evaluation.
    """
    rows = []
    for name, key in record.keys.items():
        factors = record.factors_of.get(name)
        known = ["-"] * 4
        if factors is not None:
            dim = "-" if factors.critical_dim is None else str(factors.critical_dim)
            known = [factors.method, f"{factors.target_length:,}", f"{factors.attention_temperature:.4f}", dim]
        rows.append([name, *known, key])
    header = ("contender", "method", "target length", "temperature", "critical dim.", "key of the factors")
    return section("Contenders", table("Factors that were compared", header, rows))


def effort_html(record: EvaluationRecord) -> str:
    """Return what was measured, and in what time.

    Args:
        record: The evaluation.
    """
    scores, texts, retention = record.scores, record.text_losses, record.retention
    # a task's time stands in the row of each of its metrics
    tasks = record.harness.drop_duplicates(["contender", "task"])
    num_lost = int(scores["score"].isna().sum())
    seconds = sum(float(frame["seconds"].sum()) for frame in (scores, texts, retention, tasks))
    accelerators = record.provenance.get("accelerators")
    earlier = record.provenance.get("earlier", [])
    assert isinstance(earlier, list)
    if any(process.get("accelerators") != accelerators for process in earlier):
        accelerators = None  # no row tells on which of them it was measured
    facts = [
        ("answers", _counted(scores, "sample") + (f", {num_lost:,} of them not finite" if num_lost else "")),
        ("generated", f"{int(scores['num_generated'].sum()):,} tokens" if len(scores) else ""),
        ("texts read", _counted(texts, "reading")),
        ("tokens scored", f"{int(texts['num_tokens'].sum()):,}" if len(texts) else ""),
        ("logits compared", f"{int(retention['num_positions'].sum()):,} positions" if len(retention) else ""),
        ("harness tasks", _counted(tasks, "task")),
        ("time measuring", duration(seconds)),
        ("accelerators", accelerator_hours(accelerators, seconds)),
    ]
    return section("Cost", definitions(facts))


def _counted(frame: pd.DataFrame, one: str) -> str:
    return counted(len(frame), one) if len(frame) else ""
