"""What every kind of measurement of an evaluation can do."""

from collections.abc import Collection, Iterator, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

import pandas as pd
from rich.table import Table

from results.row_store import Row
from workers.evaluate import Contender

RowType = TypeVar("RowType", bound=Row)
Key = tuple[object, ...]


class Step(NamedTuple, Generic[RowType]):
    """Some rows, and what the progress bar tells; without rows before a measurement begins."""

    rows: list[RowType]
    """To be stored together."""
    told: str
    """What is measured next, for a reader; empty where that is not known."""
    num_units: int
    """How much of `Measure.num_units` this was, or was known already."""


class Measure(Protocol[RowType]):
    """A kind of measurement: it is built before anything is written, and refuses what cannot be measured."""

    name: str
    """Of its files, see `results.evaluation`."""
    row_type: type[RowType]
    """Of its rows."""
    num_units: int
    """Units of work for each contender."""

    def fingerprint(self) -> str:
        """Return what must be the same in an evaluation that is taken up."""
        ...

    def steps(self, contender: Contender, known: Collection[Key]) -> Iterator[Step[RowType]]:
        """Measure what is not known yet; what is known yields steps without rows, for the bar.

        Args:
            contender: Whose rows.
            known: Keys of the rows that are stored.
        """
        ...

    def tables(self, rows: pd.DataFrame, contenders: Sequence[Contender]) -> list[Table]:
        """Return what the terminal shows.

        Args:
            rows: Of all contenders.
            contenders: In the order of the columns or rows.
        """
        ...
