"""Tasks of lm-evaluation-harness under every contender, with the window switch."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Self

import pandas as pd
from rich.table import Table

from results.evaluation import HARNESS, HarnessScore
from search.evaluation.config import EvaluationConfig
from search.evaluation.measure import Key, Step
from search.evaluation.tables import new_table
from workers.evaluate import Contender
from workers.harness import Harness
from workers.model import LoadedModel


class HarnessTasks:
    """Lets lm-evaluation-harness measure contenders, task by task; see `search.evaluation.measure.Measure`.

    Args:
        harness: The tasks with their data, and the model.
    """

    name = HARNESS
    row_type = HarnessScore

    def __init__(self, harness: Harness) -> None:
        self._harness = harness
        self.num_units = len(harness.task_names)

    @classmethod
    def build(cls, config: EvaluationConfig, loaded: LoadedModel) -> Self:
        """Read the tasks and their data.

        What is read at once is at most the longest of the lengths, or the original window where that is longer, for
        every contender alike.

        Args:
            config: The evaluation.
            loaded: Its model.

        Raises:
            ValueError: As `Harness`.
        """
        folder = None if config.harness_tasks is None else Path(config.harness_tasks).expanduser().absolute()
        harness = Harness(
            loaded,
            config.harness_names,
            folder=folder,
            max_length=max(*config.token_lengths, loaded.geometry.original_length),
            batch_size=config.batch_size,
            limit=config.harness_limit,
            seed=config.seed,
            is_chat=config.prompt == "chat",
        )
        return cls(harness)

    def fingerprint(self) -> str:
        """Return the hash of all prompts and of how they are scored."""
        return self._harness.fingerprint()

    def steps(self, contender: Contender, known: Collection[Key]) -> Iterator[Step[HarnessScore]]:
        """Yield a task's scores at a time."""
        left = [task for task in self._harness.task_names if (contender.name, task) not in known]
        yield Step([], "", self.num_units - len(left))
        for task in left:
            yield Step([], task, 0)
            yield Step(self._harness.scores(contender, task), "", 1)

    def tables(self, rows: pd.DataFrame, contenders: Sequence[Contender]) -> list[Table]:
        """Return one table: a row for each task and metric, a column for each contender, groups at the end."""
        known = rows.astype(object).where(rows.notna(), None)  # pandas makes NaN of what is not there
        scores = [HarnessScore(**{str(name): value for name, value in row.items()}) for row in known.to_dict("records")]
        for contender in contenders:
            scores += self._harness.group_scores([score for score in scores if score.contender == contender.name])
        figures = {(score.task, score.metric, score.contender): score for score in scores}
        names = [contender.name for contender in contenders]
        table = new_table("lm-evaluation-harness", ("task", "metric", "samples"), names)
        for task, metric in dict.fromkeys((score.task, score.metric) for score in scores):
            found = [figures.get((task, metric, contender.name)) for contender in contenders]
            num_samples = next(score.num_samples for score in found if score is not None)
            table.add_row(task, metric, str(num_samples), *(_cell(score) for score in found))
        table.caption = "Metric and filter as the harness names them, with the standard error where it gives one."
        return [table]


def _cell(score: HarnessScore | None) -> str:
    if score is None or score.value is None:
        return "none"
    return f"{score.value:.4f}" + ("" if score.stderr is None else f" ± {score.stderr:.4f}")
