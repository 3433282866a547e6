"""What the scores of generated answers say of each contender: means, RULER's figures, the effective window."""

from collections.abc import Collection, Mapping
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
"""The contender that is the model without any factors; inside its window all without short factors of their own are."""


class Baseline(NamedTuple):
    """What one contender scores in the model's own window."""

    contender: str
    """Its name."""

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


def averaged_tasks(scores: pd.DataFrame) -> list[str]:
    """Return the tasks that are in averages: those that some contender was measured at at every length of any of them.

    A task that needs more tokens than the shortest length has would make averages at several lengths no comparison.

    Args:
        scores: As in `task_means`.
    """
    chosen = scores[scores["task"] != WINDOW_TASK]
    lengths = {str(task): set(rows["length"].tolist()) for task, rows in chosen.groupby("task", sort=False)}
    every = set().union(*lengths.values())
    return [task for task, own in lengths.items() if own == every]


def task_means(scores: pd.DataFrame) -> pd.DataFrame:
    """Return each contender's mean score at each task and length, and under the task "all" the mean over the tasks.

    "all" is over `averaged_tasks`. Passkeys at the lengths of the effective window have a figure of their own and are
    left out.

    Args:
        scores: One row each, the fields of `SampleScore` as columns.

    Returns:
        Columns contender, task, length, mean (0..1); the tasks in the order of their first score, "all" at the end.
        A mean is NaN where an answer has no score, and so is "all" there.
    """
    means = mean_scores(scores[scores["task"] != WINDOW_TASK])[["contender", "task", "length", "mean"]]
    averaged = means[means["task"].isin(averaged_tasks(scores))]
    groups = averaged.groupby(["contender", "length"], sort=False)["mean"]
    overall = groups.agg(lambda values: float(values.mean(skipna=False))).reset_index()
    return pd.concat([means, overall.assign(task="all")], ignore_index=True)[means.columns]


def ruler_baseline(scores: pd.DataFrame, *, original_length: int, with_short: Collection[str] = ()) -> Baseline | None:
    """Return what the model scores at the longest length measured inside its original window, or None without any.

    It is taken from the contender "none", or from the first one without short factors of its own, which is the model
    as it was loaded there; or from the first one at all.

    Args:
        scores: As in `task_means`.
        original_length: The window, tokens.
        with_short: Contenders that have short factors.
    """
    averages = _averages(scores)
    names = sorted(averages, key=lambda name: (name != UNSCALED, name in with_short))  # else in their order
    if not names:
        return None
    of_model = averages[names[0]]
    inside = {
        length: average.score
        for length, average in of_model.items()
        if length <= original_length and not isnan(average.score)
    }
    return Baseline(names[0], max(inside), inside[max(inside)]) if inside else None


def ruler_figures(
    scores: pd.DataFrame, *, threshold: float = THRESHOLD, baseline: Baseline | None = None
) -> list[RulerFigures]:
    """Return what RULER says of each contender that was measured at one of its tasks.

    Averages are over those of its tasks that are measured at every length of any of them, see `averaged_tasks`. One
    that was not, or has no mean because an answer has no score, is in no average; look at `left_out` of each.

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
    chosen = scores[scores["task"].isin(list(TASKS))]
    means = mean_scores(chosen[chosen["task"].isin(averaged_tasks(chosen))])
    found: dict[str, dict[int, TaskAverage]] = {}
    for contender, rows in means.groupby("contender", sort=False):
        lengths = sorted(set(rows["length"].tolist()))
        found[str(contender)] = {length: average_tasks(_percents(rows[rows["length"] == length])) for length in lengths}
    return found


def _percents(rows: pd.DataFrame) -> dict[str, float]:
    pairs = zip(rows["task"].tolist(), rows["mean"].tolist(), strict=True)
    return {str(task): nan if isnan(mean) else 100.0 * mean for task, mean in pairs}
