"""Answers to samples of tasks, scored by each task's own metric."""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence

import pandas as pd
from rich.table import Table

from needles.passkey import MIN_SUCCESS, WINDOW_TASK
from needles.ruler import TASKS, THRESHOLD
from needles.sample import Sample
from results.answer_tables import (
    Baseline,
    RulerFigures,
    averaged_tasks,
    effective_windows,
    ruler_baseline,
    ruler_figures,
    task_means,
)
from results.evaluation import BEYOND, SCORES, SampleScore
from search.evaluation.measure import Key, Step
from search.evaluation.tables import new_table, percent_text
from search.evaluation.tasks import TASK_NAMES, metric_of
from workers.evaluate import Contender, score_samples
from workers.model import LoadedModel


class Answers:
    """Lets contenders answer samples, greedily and with the window switch; see `search.evaluation.measure.Measure`.

    Args:
        loaded: The model.
        samples: Of every task and length.
        batch_size: Samples decoded together.
        effective_threshold: Percent that RULER's tasks must reach in the mean at an effective length.
    """

    name = SCORES
    row_type = SampleScore

    def __init__(
        self,
        loaded: LoadedModel,
        samples: Sequence[Sample],
        *,
        batch_size: int,
        effective_threshold: float = THRESHOLD,
    ) -> None:
        self._loaded = loaded
        self._samples = samples
        self._batch_size = batch_size
        self._threshold = effective_threshold
        self.num_units = len(samples)

    def fingerprint(self) -> str:
        """Return the hash of all prompts."""
        digest = hashlib.sha256()
        for sample in self._samples:
            digest.update(f"{sample.task} {sample.length} {sample.id} ".encode() + sample.token_ids.tobytes())
        return digest.hexdigest()

    def steps(self, contender: Contender, known: Collection[Key]) -> Iterator[Step[SampleScore]]:
        """Yield a batch's scores at a time."""
        left = [
            sample for sample in self._samples if (contender.name, sample.task, sample.length, sample.id) not in known
        ]
        yield Step([], _told(left), len(self._samples) - len(left))
        for scores in score_samples(self._loaded, contender, left, metric_of=metric_of, batch_size=self._batch_size):
            left = left[len(scores) :]
            yield Step(scores, _told(left), len(scores))

    def tables(self, rows: pd.DataFrame, contenders: Sequence[Contender]) -> list[Table]:
        """Return percent by task, contender and length; RULER's figures; the effective window."""
        return answer_tables(
            rows,
            {contender.name: contender.factors.target_length for contender in contenders},
            original_length=self._loaded.geometry.original_length,
            threshold=self._threshold,
            with_short=[contender.name for contender in contenders if contender.factors.short is not None],
        )


def answer_tables(
    rows: pd.DataFrame,
    targets: Mapping[str, int],
    *,
    original_length: int,
    threshold: float,
    with_short: Collection[str] = (),
) -> list[Table]:
    """Return the tables of an evaluation's answers; those of which nothing was measured are not there.

    Args:
        rows: The fields of `SampleScore` as columns.
        targets: From a contender's name to the longest length that its factors are for, tokens; in the tables' order.
        original_length: The model's window, tokens.
        threshold: Percent that an effective length must reach.
        with_short: Contenders that have short factors, which are not the model as it was loaded inside the window.
    """
    tables = []
    measured = set(rows["task"])
    if measured - {WINDOW_TASK}:
        tables.append(_score_table(rows, targets))
    baseline = ruler_baseline(rows, original_length=original_length, with_short=with_short)
    figures = ruler_figures(rows, threshold=threshold, baseline=baseline)
    if figures:
        tables.append(_ruler_table(figures, targets, threshold, baseline))
    if WINDOW_TASK in measured:
        tables.append(_window_table(rows, targets))
    return tables


def _score_table(rows: pd.DataFrame, targets: Mapping[str, int]) -> Table:
    """Return a row for each task and contender, and a column for each length."""
    means = task_means(rows)
    lengths = sorted(set(means["length"].tolist()))
    by_place = {
        (task, contender, length): mean for contender, task, length, mean in means.itertuples(index=False, name=None)
    }
    table = new_table("Answers found, percent", ["task", "factors"], [f"{length}" for length in lengths])
    tasks = list(dict.fromkeys(means["task"]))
    for task in tasks:
        for contender, target in targets.items():
            by_length = {length: by_place.get((task, contender, length)) for length in lengths}
            cells = [
                "" if mean is None else _marked(percent_text(100.0 * mean), length, target)
                for length, mean in by_length.items()
            ]
            table.add_row(task, contender, *cells)
    missing = [name for name in TASK_NAMES if name not in set(rows["task"])]
    averaged = averaged_tasks(rows)
    partial = [name for name in tasks if name not in (*averaged, "all")]
    over = f"the {len(averaged)} tasks above" + (
        f" but for {', '.join(partial)}, not at every length" if partial else ""
    )
    table.caption = (
        f"{BEYOND}: longer than the factors are for. all: mean over {over}; "
        f"not measured: {', '.join(missing) or 'none'}."
    )
    return table


def _ruler_table(
    found: Sequence[RulerFigures], targets: Mapping[str, int], threshold: float, baseline: Baseline | None
) -> Table:
    """Return a row for each contender, and columns for lengths, means over them, and effective lengths."""
    by_name = {figures.contender: figures for figures in found}
    lengths = sorted({length for figures in by_name.values() for length in figures.averages})
    names = [*map(str, lengths), "mean", "inc.", "dec.", f"≥ {threshold:g}"]
    if baseline:
        names.append(f"≥ {baseline.score:.1f}")
    table = new_table("RULER, percent", ["factors"], names)
    for contender in [name for name in targets if name in by_name]:
        figures = by_name[contender]
        scores = {length: figures.averages.get(length) for length in lengths}
        cells = [
            "" if average is None else _marked(percent_text(average.score), length, targets[contender])
            for length, average in scores.items()
        ]
        cells += [*map(percent_text, figures.over_lengths), _length(figures.effective_length)]
        if baseline:
            cells.append(_length(figures.own_effective_length))
        table.add_row(contender, *cells)
    table.caption = _ruler_caption(found, baseline)
    return table


def _ruler_caption(figures: Sequence[RulerFigures], baseline: Baseline | None) -> str:
    left_out = {
        (figure.contender, length): average.left_out
        for figure in figures
        for length, average in figure.averages.items()
    }
    everywhere = [name for name in TASKS if all(name in names for names in left_out.values())]
    parts = [f"Mean over {len(TASKS) - len(everywhere)} of RULER's {len(TASKS)} tasks"]
    if everywhere:
        parts.append(f"not measured at every length, and in no average: {', '.join(everywhere)}")
    for (contender, length), names in left_out.items():
        further = [name for name in names if name not in everywhere]
        if further:
            parts.append(f"{contender} at {length} without {', '.join(further)} too, so no comparison")
    parts.append("inc., dec.: lengths weigh 1, 2, 3, .. from the shortest or the longest on")
    parts.append("≥: effective length, the longest with so many percent")
    if baseline:
        parts.append(f"{baseline.score:.1f}: {baseline.contender} at {baseline.length} tokens")
    else:
        parts.append("no length inside the original window, so no baseline of the model's own")
    return "; ".join(parts) + "."


def _window_table(rows: pd.DataFrame, targets: Mapping[str, int]) -> Table:
    windows = {found.contender: found for found in effective_windows(rows)}
    columns = ["k_max", "shortest", "longest", "lengths", "samples"]
    table = new_table("Effective window (k_max), tokens", ["factors"], columns)
    for contender in [name for name in targets if name in windows]:
        found = windows[contender]
        lengths = found.lengths
        k_max = _marked(f"{found.window}", found.window, targets[contender]) if found.window else f"below {lengths[0]}"
        numbers = (lengths[0], lengths[-1], len(lengths), found.num_samples)
        table.add_row(contender, k_max, *map(str, numbers))
    table.caption = (
        "k_max: the largest length at which, and at every shorter one, at least "
        f"{100 * MIN_SUCCESS:g} percent of passkeys at the prompt's beginning are found. samples: at each length."
    )
    return table


def _told(left: Sequence[Sample]) -> str:
    return f"{left[0].task}, {left[0].length} tokens" if left else ""


def _length(value: int | None) -> str:
    return "none" if value is None else f"{value}"


def _marked(cell: str, length: int, target: int) -> str:
    return f"{cell}{BEYOND}" if length > target else cell
