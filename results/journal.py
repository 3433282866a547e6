"""The write-ahead journal: measurements as JSON lines that a killed process leaves behind."""

import json
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from results.measurement import Measurement


class Journal:
    """Appends measurements to a file of its own, a line each time; for one writer.

    A line that was appended survives the death of the process, not a loss of power: nothing waits for the disk.

    Args:
        path: File, in a folder that exists; made at the first line. It must not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        """The file."""
        self._num_bytes = 0

    def append(self, measurements: Sequence[Measurement]) -> None:
        """Write measurements as one line, all of them or none.

        Args:
            measurements: Losses and failures alike.

        Raises:
            OSError: The line could not be written, above all where the disk is full; the file is as it was.
        """
        line = json.dumps([_record(measurement) for measurement in measurements], allow_nan=False).encode() + b"\n"
        self._mend()
        try:
            self._write(line)
        except OSError:
            with suppress(OSError):  # the next append mends, and a reader leaves a torn line out
                os.truncate(self.path, self._num_bytes)
            raise
        self._num_bytes += len(line)

    def _mend(self) -> None:
        """Cut off a torn line; a whole one stays, though a signal's exception hid from us that it was written."""
        if not self.path.exists() or self.path.stat().st_size == self._num_bytes:
            return
        num_bytes = self.path.read_bytes().rfind(b"\n") + 1
        os.truncate(self.path, num_bytes)
        self._num_bytes = num_bytes

    def _write(self, line: bytes) -> None:
        # Closed each time: a network file system tells only then that its disk is full.
        with self.path.open("ab", buffering=0) as file:
            while line:  # a disk that fills up takes a part of the line and refuses the rest
                line = line[file.write(line) :]


def read_journal(path: Path) -> tuple[list[Measurement], int]:
    """Return the measurements of a journal, which may still be written to.

    Args:
        path: File that a `Journal` wrote.

    Returns:
        Measurements in the order in which they were appended, and the bytes of torn lines, which were left out.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line holds something else than measurements.
    """
    *lines, unfinished = path.read_bytes().split(b"\n")
    found: list[Measurement] = []
    num_torn = len(unfinished)
    for line in lines:
        try:
            records = json.loads(line)
        except ValueError:
            num_torn += len(line) + 1
            continue
        try:
            found += [_measurement(record) for record in records]
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{path} must hold the measurements that Ropewalk writes, got a line with a fault: {error}. "
                "Read it with the version of Ropewalk that wrote it, or remove it."
            ) from error
    return found, num_torn


def _record(measurement: Measurement) -> dict[str, object]:
    record = asdict(measurement)
    return record | {"sum_nll": None if math.isnan(measurement.sum_nll) else measurement.sum_nll}


def _measurement(record: dict[str, object]) -> Measurement:
    if not isinstance(record, dict):
        raise TypeError(f"{record!r} is no measurement")
    sum_nll, gradient = record.get("sum_nll"), record.get("gradient")
    parsed = {
        "sum_nll": math.nan if sum_nll is None else sum_nll,
        "gradient": None if gradient is None else tuple(gradient),  # type: ignore[arg-type]
    }
    return Measurement(**record | parsed)  # type: ignore[arg-type]
