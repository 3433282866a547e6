"""How fast documents are scored: here, by `model(input_ids, labels=labels)`, and in the published evaluator's way.

Models have the published shapes and random weights made on the device; or name one by --model. Every way runs in a
process with a model of its own, and the ways take turns, so that a machine that slows down slows all of them. On CUDA
one model at a time is on the device; on a CPU all of them are in memory. What does not fit is a row that says so. The
losses of all ways must agree: a run in which they do not is void and exits 1, as does one in which the scorer breaks.

    python -m tests.benchmarks.scoring --folder runs/scoring
    python -m tests.benchmarks.scoring --folder runs/batches --batch 1 2 4 8 16 32
    python -m tests.benchmarks.scoring --folder runs/profile --shapes LLaMA3-8B --lengths 131072 --profile
"""

import argparse
import json
import math
import multiprocessing
import sys
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from rich.console import Console

from tests.benchmarks.scoring_models import SHAPES, Job
from tests.benchmarks.scoring_rows import (
    NO_ANSWER,
    OUT_OF_MEMORY,
    Row,
    batch_table,
    breakdowns,
    disagreements,
    is_too_large,
    line,
    way_table,
)
from tests.benchmarks.scoring_ways import CHOSEN, WAYS, Reading, Request, serve
from workers.scorer import failure_reason
from workers.speed import device_name, matmul_ceiling
from workers.threads import set_threads

CUDA_LENGTHS = [2**power for power in range(13, 21)]
CPU_LENGTHS = [1024, 2048, 4096]
CPU_SHAPE = "SmolLM2-135M"
"""The shape on a CPU, and of batches."""
LEFT_BYTES = 2**28
"""A process that keeps more of the device than this after its turn is replaced; cuBLAS keeps a quarter of it."""
GRACE_SECONDS = 5.0
"""For a process to end by itself."""
CONSOLE = Console(width=168, highlight=False, markup=False, emoji=False)


class Cell(NamedTuple):
    """What takes turns with others at one length."""

    way: str
    num_documents: int


def main() -> None:
    """Measure, print the tables, and say whether all ways agreed."""
    options = parsed()
    set_threads(None)
    options.folder.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for model in [options.model] if options.model else options.shapes:
        bench = Bench(model, options)
        try:
            for length in sorted(options.lengths):
                for row in bench.rows(length):
                    rows.append(row)
                    CONSOLE.print(line(row))
                write(rows, options)
            if options.profile is not None:
                bench.profile(options.profile)
        finally:
            bench.close()
    CONSOLE.print(batch_table(rows) if options.batch else way_table(rows, device_name(torch.device(options.device))))
    if wrong := disagreements(rows) + breakdowns(rows):
        sys.exit("\n".join(wrong))


def parsed() -> argparse.Namespace:
    """Return the options, with the defaults of the device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where scoring.json is written")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), help="models of random weights")
    parser.add_argument("--model", help="folder or .gguf file of a real model, in place of shapes")
    parser.add_argument("--gguf-file", help="name of a GGUF file in the folder --model")
    parser.add_argument("--layers", type=int, help="cut the shapes to so many layers")
    parser.add_argument("--lengths", type=int, nargs="+", help="tokens per document")
    parser.add_argument("--ways", nargs="+", choices=WAYS)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="of ropewalk and labels")
    parser.add_argument("--batch", type=int, nargs="+", help="documents asked for at once; ropewalk alone")
    parser.add_argument("--profile", type=int, nargs="?", const=0, help="also profile ropewalk, at its longest length")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each way")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="after which a way gets no further turn at a length"
    )
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds after which a turn is given up")
    options = parser.parse_args()
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    is_cpu = options.device == "cpu"
    options.shapes = options.shapes or ([CPU_SHAPE] if is_cpu or options.batch else list(SHAPES))
    options.lengths = options.lengths or (CPU_LENGTHS if is_cpu else CUDA_LENGTHS)[: 1 if options.batch else None]
    options.ways = options.ways or ["ropewalk", "labels", *(["labels-fp32"] if is_cpu else []), "published"]
    return options


class Bench:
    """The processes of one model, one for each way."""

    def __init__(self, model: str, options: argparse.Namespace) -> None:
        self._model = model
        self._options = options
        self._cells = [Cell(way, 1) for way in options.ways]
        if options.batch:
            self._cells = [Cell("ropewalk", num_documents) for num_documents in sorted(options.batch)]
            self._cells.append(Cell(CHOSEN, max(options.batch)))
        self._processes: dict[str, Process] = {}
        self._too_large: list[tuple[Cell, int, str]] = []
        self._longest = 0
        for dtype in {options.dtype, "float32"}:
            ceiling(options.device, dtype)  # before any process could disturb it
        for cell in self._cells:
            self._process(cell.way)  # all at once: importing torch takes each of them seconds

    def rows(self, length: int) -> list[Row]:
        """Return a row for each way at a length, measured in turns."""
        readings: dict[Cell, list[Reading]] = defaultdict(list)
        failures: dict[Cell, str] = {}
        for _ in range(self._options.repeats):
            for cell in self._cells:
                spent = sum(sum(reading.seconds) for reading in readings[cell])
                if cell not in failures and (reason := self._known_failure(cell, length)):
                    failures[cell] = reason
                if cell in failures or spent > self._options.seconds:
                    continue
                reading = self._process(cell.way).ask(Request(length, cell.num_documents))
                if not reading.failure:
                    readings[cell].append(reading)
                    continue
                failures[cell] = reading.failure
                if is_too_large(reading.failure):
                    self._too_large.append((cell, length, reading.failure))
        for cell in self._cells:
            if cell.way == "ropewalk" and readings[cell]:
                self._longest = length
        return [self._row(cell, length, readings[cell], failures.get(cell, "")) for cell in self._cells]

    def profile(self, length: int) -> None:
        """Print where the scorer's time goes, at a length or at the longest that was measured."""
        found = self._process("ropewalk").ask(Request(length or self._longest, 1, is_profile=True))
        text = found.profile or f"no profile: {found.failure}"
        title = f"{self._model}, {length or self._longest} tokens, ropewalk"
        CONSOLE.print(f"\n{title}: {text}\n")
        (self._options.folder / f"profile-{Path(self._options.gguf_file or self._model).name}.txt").write_text(
            f"{title}: {text}\n", encoding="utf-8"
        )

    def close(self) -> None:
        """End all processes."""
        for process in self._processes.values():
            process.close()

    def _known_failure(self, cell: Cell, length: int) -> str:
        """Return why there is no use in trying: something smaller did not fit."""
        for other, other_length, reason in self._too_large:
            if other.way == cell.way and other.num_documents <= cell.num_documents and other_length <= length:
                return f"not tried: {other.num_documents} x {other_length} tokens: {reason}"
        return ""

    def _process(self, way: str) -> "Process":
        process = self._processes.get(way)
        if process is None or not process.is_fresh:
            options = self._options
            job = Job(way, self._model, options.gguf_file, options.layers, options.device, options.dtype)
            self._processes[way] = Process(job, options.limit)
        return self._processes[way]

    def _row(self, cell: Cell, length: int, readings: Sequence[Reading], failure: str) -> Row:
        name = Path(self._options.gguf_file or self._model).name
        if not readings:
            return Row(shape=name, length=length, way=cell.way, num_documents=cell.num_documents, failure=failure)
        last = readings[-1]
        return Row(
            shape=name,
            length=length,
            way=cell.way,
            num_documents=cell.num_documents,
            dtype=last.dtype,
            attention=last.attention,
            seconds=tuple(seconds for reading in readings for seconds in reading.seconds),
            losses=last.losses,
            peak_bytes=max(reading.peak_bytes for reading in readings),
            weight_bytes=last.weight_bytes,
            flops=last.flops,
            useful_flops=last.useful_flops,
            ceiling=ceiling(self._options.device, last.dtype),
            failure=failure,
        )


class Process:
    """A process that holds one way; it is replaced after a failure, which may have broken it."""

    def __init__(self, job: Job, limit_seconds: float) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection: Connection
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, job), daemon=True)
        self._process.start()
        theirs.close()  # or its end would never be seen
        self._limit_seconds = limit_seconds
        self.is_fresh = True

    def ask(self, request: Request) -> Reading:
        """Return the answer, or the failure of a process that gives none."""
        try:
            self._connection.send(request)
            if self._connection.poll(self._limit_seconds):
                reading: Reading = self._connection.recv()
            else:
                reading = Reading(failure=f"{NO_ANSWER} in {self._limit_seconds:g} seconds")
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode
            reading = Reading(
                failure=f"{OUT_OF_MEMORY}: the system killed the process"
                if code == -9
                else f"the process ended: {code}"
            )
        if reading.failure or reading.left_bytes > LEFT_BYTES:
            self.close()
        return reading

    def close(self) -> None:
        """End the process."""
        self.is_fresh = False
        with suppress(OSError):
            self._connection.send(None)
            self._process.join(GRACE_SECONDS)
        self._process.kill()
        self._process.join()
        self._connection.close()


def ceiling(device: str, dtype: str) -> float:
    """Return FLOP/s of a plain matmul here; NaN where it fails, since rows are worth more than their shares."""
    try:
        found = matmul_ceiling(torch.device(device), getattr(torch, dtype))
    except RuntimeError as error:
        CONSOLE.print(f"no ceiling in {dtype}: {failure_reason(error)}")
        return math.nan
    if device == "cuda":
        torch.cuda.empty_cache()
    return found


def write(rows: Sequence[Row], options: argparse.Namespace) -> None:
    """Write all that was measured so far; numbers that are not are null."""
    where = {
        "device": device_name(torch.device(options.device)),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "command": sys.argv[1:],
        "rows": [
            {
                key: None if isinstance(value, float) and math.isnan(value) else value
                for key, value in asdict(row).items()
            }
            for row in rows
        ],
    }
    (options.folder / "scoring.json").write_text(json.dumps(where, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
