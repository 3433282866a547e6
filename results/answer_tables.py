"""What the scores of generated answers say of each contender: means, RULER's figures, the effective window."""

from collections.abc import Mapping
from math import isnan, nan
from typing import NamedTuple

import pandas as pd

from needles.passkey import WINDOW_TASK, effective_window
from needles.ruler import (
    TASKS,
    THRESHOLD,
    LengthAverages,
    TaskAverage,
    average_lengths,
    average_tasks,
    effective_length,
)
from results.evaluation import mean_scores

UNSCALED = "none"
"""The contender that is the model without any factors; inside its window every contender is."""


class Baseline(NamedTuple):
    """What the model scores in its own window."""

    length: int
    """Tokens; the longest measured inside the window."""

    score: float
    """Mean over RULER's tasks, percent."""


class RulerFigures(NamedTuple):
    """One contender's figures over RULER's tasks; percent and tokens."""

    contender: str
    """Its name."""

    averages: Mapping[int, TaskAverage]
    """By length, tokens: the mean over the tasks measured there, percent, and which those are."""

    over_lengths: LengthAverages
    """Means over the lengths, percent; NaN where a length has no figure."""

    effective_length: int | None
    """Largest length that reaches the threshold; None where none does."""

    own_effective_length: int | None
    """Largest length that reaches the baseline; None where none does, or there is no baseline."""


class EffectiveWindow(NamedTuple):
    """How far one contender finds passkeys."""

    contender: str
    """Its name."""

    window: int
    """k_max, tokens; 0 where the shortest length fails already."""

    lengths: tuple[int, ...]
    """Lengths that were looked at, tokens, rising."""

    num_samples: int
    """Fewest samples at any of them."""


def task_means(scores: pd.DataFrame) -> pd.DataFrame:
    """Return each contender's mean score at each task and length, and under the task "all" the mean over the tasks.

    Passkeys at the lengths of the effective window have a figure of their own and are left out.

    Args:
        scores: One row each, the fields of `SampleScore` as columns.

    Returns:
        Columns contender, task, length, mean (0..1); the tasks in the order of their first score, "all" at the end.
        A mean is NaN where an answer has no score, and so is "all" there.
    """
    means = mean_scores(scores[scores["task"] != WINDOW_TASK])[["contender", "task", "length", "mean"]]
    groups = means.groupby(["contender", "length"], sort=False)["mean"]
    overall = groups.agg(lambda values: float(values.mean(skipna=False))).reset_index()
    return pd.concat([means, overall.assign(task="all")], ignore_index=True)[means.columns]


def ruler_baseline(scores: pd.DataFrame, *, original_length: int) -> Baseline | None:
    """Return what the model scores at the longest length measured inside its original window, or None without any.

    It is taken from the contender "none", or from the first one: inside the window each is the model as it was loaded.

    Args:
        scores: As in `task_means`.
        original_length: The window, tokens.
    """
    averages = _averages(scores)
    of_model = averages.get(UNSCALED) or next(iter(averages.values()), {})
    inside = {
        length: average.score
        for length, average in of_model.items()
        if length <= original_length and not isnan(average.score)
    }
    return Baseline(max(inside), inside[max(inside)]) if inside else None


def ruler_figures(
    scores: pd.DataFrame, *, threshold: float = THRESHOLD, baseline: Baseline | None = None
) -> list[RulerFigures]:
    """Return what RULER says of each contender that was measured at one of its tasks.

    The tasks that were not measured, or have no mean because an answer has no score, are in no average; look at
    `left_out` of each.

    Args:
        scores: As in `task_means`.
        threshold: Percent that an effective length must reach.
        baseline: As `ruler_baseline` returns it.
    """
    found = []
    for contender, averages in _averages(scores).items():
        by_length = {length: average.score for length, average in averages.items()}
        own = None if baseline is None else effective_length(by_length, threshold=baseline.score)
        found.append(
            RulerFigures(
                contender,
                averages,
                average_lengths(by_length),
                effective_length(by_length, threshold=threshold),
                own,
            )
        )
    return found


def effective_windows(scores: pd.DataFrame) -> list[EffectiveWindow]:
    """Return Position Interpolation's k_max of each contender that was measured at the task `passkey_window`.

    Where a model's logits were no numbers, no passkey was found.

    Args:
        scores: As in `task_means`.

    Source: Position Interpolation, arXiv:2306.15595, section 3.3.
    """
    chosen = scores[scores["task"] == WINDOW_TASK]
    found = []
    for contender, rows in chosen.groupby("contender", sort=False):
        groups = rows.assign(found=rows["score"].astype(float).fillna(0.0)).groupby("length")["found"]
        success = {int(str(length)): float(share) for length, share in groups.mean().items()}
        found.append(
            EffectiveWindow(str(contender), effective_window(success), tuple(sorted(success)), int(groups.size().min()))
        )
    return found


def _averages(scores: pd.DataFrame) -> dict[str, dict[int, TaskAverage]]:
    """Return the average over RULER's tasks by contender and length, percent; lengths rise."""
    means = mean_scores(scores[scores["task"].isin(list(TASKS))])
    found: dict[str, dict[int, TaskAverage]] = {}
    for contender, rows in means.groupby("contender", sort=False):
        lengths = sorted(set(rows["length"].tolist()))
        found[str(contender)] = {length: average_tasks(_percents(rows[rows["length"] == length])) for length in lengths}
    return found


def _percents(rows: pd.DataFrame) -> dict[str, float]:
    pairs = zip(rows["task"].tolist(), rows["mean"].tolist(), strict=True)
    return {str(task): nan if isnan(mean) else 100.0 * mean for task, mean in pairs}
