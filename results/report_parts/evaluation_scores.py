"""Scores of an evaluation in percent, as its tables and plots need them; an average tells what it is over."""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

from needles.passkey import WINDOW_TASK
from needles.ruler import TASKS
from results.answer_tables import averaged_tasks
from results.evaluation import mean_scores
from results.report_parts.evaluation_record import EvaluationRecord


@dataclass(frozen=True)
class Scores:
    """Mean scores by task, contender and length."""

    tasks: tuple[str, ...]
    """In the order of their first answer."""
    lengths: tuple[int, ...]
    """Tokens, ascending."""
    averaged: tuple[str, ...]
    """The tasks that are in averages: those measured at every length, see `results.answer_tables.averaged_tasks`."""
    percent: dict[tuple[str, str, int], float]
    """By task, contender and length; NaN where an answer has no score."""
    counts: dict[tuple[str, str, int], int]
    """Samples behind each of them."""

    def overall(self, contender: str, length: int) -> float | None:
        """Return the mean over the averaged tasks, percent; None where one is not measured there, NaN by a NaN.

        Args:
            contender: Its name.
            length: Tokens.
        """
        values = [self.percent.get((task, contender, length)) for task in self.averaged]
        known = [value for value in values if value is not None]
        return math.fsum(known) / len(known) if known and len(known) == len(values) else None

    def is_even(self, tasks: Collection[str], contenders: Collection[str], length: int) -> bool:
        """Return whether contenders can be compared: two or more, each with the same number of samples of each task.

        Args:
            tasks: By name.
            contenders: By name.
            length: Tokens.
        """
        counts = [{self.counts.get((task, name, length), 0) for name in contenders} for task in tasks]
        return len(contenders) > 1 and all(len(own) == 1 and 0 not in own for own in counts)

    @property
    def ruler_tasks(self) -> tuple[str, ...]:
        """Those of RULER's tasks that were measured, in RULER's order."""
        return tuple(task for task in TASKS if task in self.tasks)

    @property
    def missing_ruler_tasks(self) -> tuple[str, ...]:
        """The others of RULER's thirteen."""
        return tuple(task for task in TASKS if task not in self.tasks)


def scores_of(record: EvaluationRecord) -> Scores:
    """Return the scores of every task but the one for the effective window.

    Args:
        record: The evaluation.
    """
    return _scores(record, lambda task: task != WINDOW_TASK)


def window_scores_of(record: EvaluationRecord) -> Scores:
    """Return the scores of the task for the effective window.

    Args:
        record: The evaluation.
    """
    return _scores(record, lambda task: task == WINDOW_TASK)


def percent_text(value: float | None) -> str:
    """Return a percentage for people; a dash for what was not measured.

    Args:
        value: Percent; NaN where the model's logits were no numbers.
    """
    if value is None:
        return "-"
    return "not finite" if math.isnan(value) else f"{value:.1f}"


def _scores(record: EvaluationRecord, is_wanted: Callable[[str], bool]) -> Scores:
    chosen = record.scores.loc[record.scores["task"].map(str).map(is_wanted).astype(bool)]
    if chosen.empty:
        return Scores((), (), (), {}, {})
    means = mean_scores(chosen)
    keys = [
        (str(task), str(name), int(length))
        for task, name, length in zip(means["task"], means["contender"], means["length"], strict=True)
    ]
    percent = {key: 100.0 * float(mean) for key, mean in zip(keys, means["mean"], strict=True)}
    averaged = {*averaged_tasks(chosen)}
    return Scores(
        tuple(dict.fromkeys(task for task, _, _ in percent)),
        tuple(sorted({length for _, _, length in percent})),
        tuple(dict.fromkeys(task for task, _, _ in percent if task in averaged)),
        percent,
        {key: int(count) for key, count in zip(keys, means["count"], strict=True)},
    )
