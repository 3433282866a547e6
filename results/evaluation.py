"""Scores of generated answers: one line a sample while an evaluation runs, a Parquet file and a table at its end."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from results.atomic_file import replacing

LINES = "scores.jsonl"
"""What a running evaluation appends to."""
TABLE = "scores.parquet"
"""The same as a table, written when the evaluation is finished."""


@dataclass(frozen=True, kw_only=True)
class SampleScore:
    """What one contender answered to one sample, and how good that was."""

    contender: str
    """Name of the factors, as their user knows them."""
    candidate: str
    """Content key of the factors, see `results.measurement.candidate_key`."""
    task: str
    """Name of the task."""
    sample: str
    """Id of the sample, unique within its task and length."""
    length: int
    """Tokens of prompt and answer together."""
    depth: float | None
    """Where the needle lies, 0..1; None where there is none."""
    score: float | None
    """The task's own metric, 0..1; None where the model's logits were no numbers."""
    text: str
    """What was generated."""
    num_generated: int
    """Tokens that were generated."""
    seconds: float
    """Wall time of the sample; a batch's is shared evenly."""

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What tells it from every other score of an evaluation; two contenders may have the same factors."""
        return self.contender, self.task, self.length, self.sample


class ScoreStore:
    """Keeps the scores of one evaluation; for one writer.

    What was added survives the death of the process at any moment.

    Args:
        folder: Folder of the evaluation; it exists.
    """

    def __init__(self, folder: Path) -> None:
        self._lines = folder / LINES
        self._table = folder / TABLE

    def add(self, scores: Sequence[SampleScore]) -> None:
        """Append scores.

        Args:
            scores: New ones.

        Raises:
            OSError: They could not be written.
        """
        lines = "".join(json.dumps(asdict(score), allow_nan=False) + "\n" for score in scores)
        with self._lines.open("ab", buffering=0) as file:
            file.write(lines.encode())

    def recover(self) -> list[SampleScore]:
        """Cut off the line in which a killed process ended, and return the scores before it.

        Raises:
            OSError: The file cannot be read or written to.
            ValueError: A line holds something else than a score.
        """
        if not self._lines.is_file():
            return []
        content = self._lines.read_bytes()
        num_whole = content.rfind(b"\n") + 1
        if num_whole < len(content):
            os.truncate(self._lines, num_whole)
        return [_score(line, self._lines) for line in content[:num_whole].splitlines()]

    def finish(self) -> pd.DataFrame:
        """Write all scores as a Parquet file, and return them.

        Returns:
            One row per score, the fields of `SampleScore` as columns.

        Raises:
            OSError: The file cannot be written.
            ValueError: As `recover`.
        """
        columns = [field.name for field in fields(SampleScore)]
        frame = pd.DataFrame([asdict(score) for score in self.recover()], columns=columns)
        with replacing(self._table) as temporary:
            pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), temporary)
        return frame


def mean_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """Return sum, count and mean of the scores of each contender, task and length.

    Args:
        scores: As `ScoreStore.finish` returns them.

    Returns:
        Columns contender, task, length, sum, count, mean; contenders and tasks in the order of their first score. Sum
        and mean are NaN where an answer has no score.
    """
    groups = scores.assign(score=scores["score"].astype(float)).groupby(["contender", "task", "length"], sort=False)
    means = groups["score"].agg([_sum, "size"]).reset_index()
    means = means.rename(columns={"_sum": "sum", "size": "count"})
    return means.assign(mean=means["sum"] / means["count"])


def _sum(scores: "pd.Series[float]") -> float:
    return float(scores.sum(skipna=False))


def _score(line: bytes, path: Path) -> SampleScore:
    try:
        return SampleScore(**json.loads(line))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path} must hold the scores that Ropewalk writes, got a line with a fault: {error}. "
            "Read it with the version of Ropewalk that wrote it, or start a new evaluation."
        ) from error
