"""The log of a training run: one row for each step and window, kept as it comes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from results.row_store import RowStore, lines_path, read_rows, table_path

LOG_NAME = "training"
"""What the files of a training log are called, without an ending."""


@dataclass(frozen=True, kw_only=True)
class TrainingRow:
    """What one step gave on the packs of one window."""

    step: int
    """From 1."""
    window: Literal["short", "long"]
    """Which packs."""
    sum_nll: float
    """Negative log-likelihood summed over their scored tokens, before the step, nats."""
    num_tokens: int
    """Tokens scored."""
    learning_rate: float
    """Of the step."""
    grad_norm: float
    """Of the step's gradient, both windows together, before it is clipped."""
    seconds: float
    """The step took, both windows together."""


class TrainingLog:
    """Keeps the rows of a training run in a folder; for one writer.

    Args:
        folder: It exists.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._store = RowStore(folder, LOG_NAME, TrainingRow)

    def take_up(self, step: int) -> None:
        """Drop the rows of steps that will be taken again.

        Args:
            step: The last step whose rows stay; 0 for none.

        Raises:
            OSError: The file cannot be read or written.
            ValueError: It holds something else than such rows.
        """
        table_path(self._folder, LOG_NAME).unlink(missing_ok=True)
        kept = [row for row in self._store.recover() if row.step <= step]
        aside = lines_path(self._folder, f".{LOG_NAME}")
        aside.unlink(missing_ok=True)
        if kept:
            RowStore(self._folder, aside.stem, TrainingRow).add(kept)
            aside.replace(lines_path(self._folder, LOG_NAME))
        else:
            lines_path(self._folder, LOG_NAME).unlink(missing_ok=True)

    def add(self, rows: list[TrainingRow]) -> None:
        """Append the rows of a step, all or none.

        Args:
            rows: New ones.

        Raises:
            OSError: They could not be written.
        """
        self._store.add(rows)

    def finish(self) -> pd.DataFrame:
        """Write all rows as a Parquet file, and return them.

        Returns:
            One row for each step and window, the fields of `TrainingRow` as columns.

        Raises:
            OSError: The file cannot be written.
        """
        return self._store.finish()


def read_training_log(folder: Path) -> pd.DataFrame:
    """Return the log of a training run, finished or not.

    Args:
        folder: Where `TrainingLog` keeps it.

    Returns:
        One row for each step and window, the fields of `TrainingRow` as columns; empty where there is none.

    Raises:
        ValueError: A file is damaged or of another version.
        OSError: It cannot be read.
    """
    return read_rows(folder, LOG_NAME, TrainingRow)
