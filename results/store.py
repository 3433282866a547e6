"""The store of measurements: a write-ahead journal that becomes Parquet parts, in a run directory."""

import logging
from collections.abc import Iterable
from pathlib import Path
from time import monotonic

import pandas as pd
import pyarrow as pa

from results.journal import Journal, read_journal
from results.measurement import Measurement
from results.parts import (
    JOURNAL,
    PART,
    TORN,
    NotParquetError,
    measurements_table,
    next_number,
    numbered,
    part_path,
    read_part,
    table_measurements,
    write_part,
)
from results.schema import MEASUREMENTS

FOLDER = "measurements"
"""Folder of the parts, inside the run directory."""

logger = logging.getLogger(__name__)


class MeasurementStore:
    """Keeps measurements as numbered Parquet parts and a journal of the latest ones; for one writer, the driver.

    What was added survives the death of the process at any moment; what was flushed survives a loss of power too.

    Args:
        directory: Run directory; the folder `measurements` in it is made at the first measurement. What is there
            already is kept, and numbering continues after it.
        flush_seconds: Time after which adding also flushes, seconds.
    """

    def __init__(self, directory: str | Path, *, flush_seconds: float = 60.0) -> None:
        self._folder = Path(directory) / FOLDER
        self._flush_seconds = flush_seconds
        self._flushed = monotonic()
        self._journal: Journal | None = None

    def add(self, measurements: Iterable[Measurement]) -> None:
        """Write measurements to the journal, all of them or none; flush where it is time.

        An exception from a signal handler may come after they were written: then they are in the store.

        Args:
            measurements: Losses and failures alike; a (candidate, document) pair that is stored already replaces it.

        Raises:
            OSError: The journal cannot be written to; the store is as it was before.
        """
        new = list(measurements)
        if not new:
            return
        self._open_journal().append(new)
        if monotonic() - self._flushed >= self._flush_seconds:
            try:
                self.flush()
            except OSError as error:
                self._flushed = monotonic()
                logger.warning("measurements stay in the journal, a part could not be written: %s", error)

    def flush(self) -> None:
        """Turn the journal into a new part; without anything new, do nothing.

        Raises:
            OSError: The folder cannot be written to; the journal is kept for another try.
        """
        # From the file: an exception that a signal raised may have kept from us what was written to it.
        if self._journal is None or not self._journal.path.exists():
            return
        journal = self._journal.path
        waiting, _ = read_journal(journal)
        if not waiting:
            return
        write_part(journal.with_suffix(PART), waiting)
        self._journal = None
        self._flushed = monotonic()
        journal.unlink(missing_ok=True)

    def recover(self) -> list[Measurement]:
        """Mend what a killed driver left, and return every measurement stored; for a run that is taken up.

        Journals become parts. A torn line is cut off, and a part that is no Parquet file is set aside as `*.torn`;
        both are said in the log, and what they held has to be measured again.

        Returns:
            Measurements in the order in which they were added, each (candidate, document) pair once, as it was
            added last.

        Raises:
            OSError: The folder cannot be read or written to.
            ValueError: A part or a journal is of another version of Ropewalk.
        """
        self.flush()
        for leftover in self._folder.glob(".part-*.tmp"):
            leftover.unlink()
        tables = self._readable_parts()
        for number, journal in numbered(self._folder, JOURNAL).items():
            if number not in tables:
                tables[number] = measurements_table(self._take_up(journal))
            journal.unlink()
        found: dict[tuple[str, str], Measurement] = {}
        for number in sorted(tables):
            for measurement in table_measurements(tables[number]):
                key = measurement.candidate, measurement.document
                found.pop(key, None)
                found[key] = measurement
        return list(found.values())

    def _open_journal(self) -> Journal:
        # A journal whose part is there, as an interrupted flush leaves it, is obsolete: nobody would read a new line.
        if self._journal is None or self._journal.path.with_suffix(PART).is_file():
            self._folder.mkdir(parents=True, exist_ok=True)
            self._journal = Journal(part_path(self._folder, next_number(self._folder), JOURNAL))
        return self._journal

    def _readable_parts(self) -> dict[int, pa.Table]:
        tables = {}
        for number, part in numbered(self._folder, PART).items():
            try:
                tables[number] = read_part(part)
            except NotParquetError:
                torn = part.rename(part.with_name(part.name + TORN))
                logger.warning(
                    "%s was no Parquet file (%d bytes) and is now %s; what it held is measured again",
                    part,
                    torn.stat().st_size,
                    torn.name,
                )
        return tables

    def _take_up(self, journal: Path) -> list[Measurement]:
        measurements, num_torn = read_journal(journal)
        if num_torn:
            logger.warning("%s ended in a torn line: %d bytes were cut off and are measured again", journal, num_torn)
        if measurements:
            write_part(journal.with_suffix(PART), measurements)
        return measurements


def read_measurements(directory: str | Path) -> pd.DataFrame:
    """Return all measurements of a run, finished or running, in the order in which they were added.

    Nothing is changed: what a killed driver left torn in its journal is passed over, not mended.

    Args:
        directory: Run directory.

    Returns:
        One row per (candidate, document) pair, as it was added last, with the fields of `Measurement` as columns; a
        failure has a NaN `sum_nll` and its reason in `failure`, which is missing (`isna`) elsewhere; `gradient` is
        None or an array, shape (rotary_dim / 2 + 1,), float64. No rows where nothing was added yet.

    Raises:
        ValueError: directory is no folder, a part is no Parquet file, or it has another schema or schema version.
        OSError: A file cannot be read.
    """
    if not Path(directory).is_dir():
        raise ValueError(f"measurements must be read from a run directory, got {directory}, which is no folder.")
    frame: pd.DataFrame = pa.concat_tables(_stored_tables(Path(directory) / FOLDER)).to_pandas()
    return frame.drop_duplicates(["candidate", "document"], keep="last", ignore_index=True)


def _stored_tables(folder: Path) -> list[pa.Table]:
    seen = None
    while True:
        # Journals first: one that a running driver removes before this line has its part in the next.
        journals = numbered(folder, JOURNAL)
        parts = numbered(folder, PART)
        files = journals | parts
        try:
            tables = [_table(files[number]) for number in sorted(files)]
        except FileNotFoundError:
            if files == seen:
                raise
            seen = files
            continue
        return [MEASUREMENTS.empty_table(), *tables]


def _table(path: Path) -> pa.Table:
    return read_part(path) if path.suffix == PART else measurements_table(read_journal(path)[0])
