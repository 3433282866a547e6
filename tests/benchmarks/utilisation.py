"""How busy the driver keeps its workers, beside the barrier of the published code, in one run.

Documents take a log-normal time (sigma 0.5, mean 1 s) in which a worker sleeps. The driver, its sampler, its ledger and
its store are the real ones. Workers are real Ray actors, or simulated ones: a discrete-event simulation in which the
workers' time is virtual and the time that the driver's code takes is measured and added to it.

    python -m tests.benchmarks.utilisation --actors 8 32 --simulated 8 32 128
"""

import argparse
import io
import logging
import math
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from heapq import heappop, heappush
from pathlib import Path
from typing import ParamSpec, TypeVar
from unittest import mock

import numpy as np
import ray
from rich.console import Console
from rich.table import Table

from needles.document import NeedleDocument
from needles.needle import Needle
from results.measurement import Measurement, candidate_key
from results.store import MeasurementStore
from rope.factors import RescaleFactors
from search.evolution import evolve
from search.ledger import Entry, Ledger
from search.objectives import Objectives
from search.panels import Panels
from search.progress import Plan, SearchProgress
from search.samplers.longrope2 import EvolutionConfig, LongRoPE2Sampler
from search.space import SearchSpace
from search.study import Trials, open_storage, open_study
from workers.pool import RayPool
from workers.scorer import Scorer, Task, WorkerSpeed

NUM_DOCUMENTS = 10
DOCUMENTS = tuple(f"document-{number}" for number in range(NUM_DOCUMENTS))
SIGMA = 0.5
TASKS_PER_WORKER = 2
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def main() -> None:
    """Run every order with every number of workers and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", type=int, nargs="*", default=[8, 32], help="numbers of real Ray actors")
    parser.add_argument("--simulated", type=int, nargs="*", default=[8, 32, 128], help="numbers of simulated workers")
    parser.add_argument("--seconds", type=float, default=1.0, help="mean seconds of a document")
    parser.add_argument("--documents-per-worker", type=int, default=90)
    parser.add_argument("--orders", nargs="*", default=["barrier", "generational", "steady"])
    parser.add_argument("--storage", help="Optuna storage URL; {folder} stands for a temporary folder")
    parser.add_argument("--pairs", type=int, default=64, help="frequency pairs of the model")
    options = parser.parse_args()
    logging.getLogger("search").setLevel(logging.ERROR)
    table = Table(title=f"documents of {options.seconds:g} s, log-normal sigma {SIGMA}, {options.pairs} pairs")
    for heading in ("workers", "order", "utilisation", "documents/s", "driver ms/document", "ledger ms/trial", "tasks"):
        table.add_column(heading, justify="right", no_wrap=True)
    for kind, counts in (("actors", options.actors), ("simulated", options.simulated)):
        for num_workers in counts:
            for order in options.orders:
                num_candidates = max(64, num_workers * options.documents_per_worker // NUM_DOCUMENTS)
                outcome = run(kind, num_workers, order, num_candidates, options)
                table.add_row(f"{num_workers} {kind}", order, *outcome)
                Console().print(" ".join((str(num_workers), kind, order, *outcome)), highlight=False)
    Console().print(table)


def run(
    kind: str, num_workers: int, order: str, num_candidates: int, options: argparse.Namespace
) -> tuple[str, str, str, str, str]:
    """Return utilisation, documents per second, driver and ledger cost, and the number of tasks, as text."""
    make_scorer = simulated if kind == "simulated" else actors
    scorer = Watched(make_scorer(num_workers, options.seconds))
    sampler = make_sampler(num_candidates, options.pairs, "steady" if order == "steady" else "generational")
    with tempfile.TemporaryDirectory() as folder, ledger_timer() as ledger_seconds:
        # the published code's task is a whole candidate
        ledger = make_ledger(
            scorer, Path(folder), options.storage, batch_size=NUM_DOCUMENTS if order == "barrier" else 1
        )
        scorer.begin()
        cpu = time.process_time()
        if order == "barrier":
            in_barriers(ledger, sampler, num_workers)
        else:
            evolve(ledger, sampler, schedule="steady" if order == "steady" else "generational")
        cpu = time.process_time() - cpu
        elapsed = scorer.elapsed()
    scorer.close()
    num_documents = len(ledger.measurements)
    busy = math.fsum(entry.seconds for entry in ledger.measurements.values())
    assert num_documents == NUM_DOCUMENTS * sum(sampler.generation_sizes)
    return (
        f"{busy / (elapsed * num_workers):.1%}",
        f"{num_documents / elapsed:.2f}",
        f"{(cpu - ledger_seconds.cpu) / num_documents * 1e3:.2f}",
        f"{ledger_seconds.wall / sum(sampler.generation_sizes) * 1e3:.2f}",
        str(scorer.num_tasks),
    )


def in_barriers(ledger: Ledger, sampler: LongRoPE2Sampler, num_workers: int) -> None:
    """As the published code: batches of one whole candidate per worker, and all wait for the slowest."""
    left = sum(sampler.generation_sizes)
    sizes = deque(sampler.generation_sizes)
    while left:
        size = min(num_workers, sizes[0])
        asked = [ledger.trials.ask_candidate(sampler) for _ in range(size)]
        ledger.score([Entry(candidate, DOCUMENTS) for candidate in asked])
        left -= size
        sizes[0] -= size
        if not sizes[0]:
            sizes.popleft()


def make_sampler(num_candidates: int, num_pairs: int, schedule: str) -> LongRoPE2Sampler:
    space = SearchSpace(
        rotary_dim=2 * num_pairs,
        base=500_000.0,
        original_length=8192,
        target_length=131_072,
        critical_dims=tuple(range(num_pairs // 2, num_pairs // 2 + 5)),
        low=16.0,
        high=32.0,
        step=0.01,
        attention_temperature=1.0,
    )
    config = EvolutionConfig(num_generations=max(1, (num_candidates - 64) // 32))
    return LongRoPE2Sampler(space, config, seed=0, schedule="steady" if schedule == "steady" else "generational")


def make_ledger(scorer: Scorer, folder: Path, url: str | None, *, batch_size: int) -> Ledger:
    storage = open_storage(url and url.format(folder=folder), run_dir=folder)
    study = open_study(f"utilisation {time.time_ns()}", storage=storage, identity={}, note="")
    plan = Plan(model="", original_length=1, target_length=2, num_candidates=1, num_documents=1)
    progress = SearchProgress(plan, console=Console(file=io.StringIO()))
    return Ledger(
        trials=Trials(study),
        scorer=scorer,
        store=MeasurementStore(folder),
        progress=progress,
        panels=Panels(documents=DOCUMENTS, size=NUM_DOCUMENTS, batch_size=batch_size),
        objectives=Objectives(),
    )


def seconds_of(candidate: str, document: str, mean_seconds: float) -> float:
    """Return how long a document takes; the same in every process."""
    rng = np.random.default_rng([int(candidate, 16), int(document.removeprefix("document-"))])
    return mean_seconds * float(rng.lognormal(-(SIGMA**2) / 2, SIGMA))


def measurement_of(factors: RescaleFactors, document: str, mean_seconds: float) -> Measurement:
    """Return a loss that the search can work with."""
    key = candidate_key(factors)
    return Measurement(
        candidate=key,
        document=document,
        split="search",
        depth=0.5,
        sum_nll=abs(math.log(factors.values[-1] / 20)) + 0.1,
        num_tokens=1,
        seconds=seconds_of(key, document, mean_seconds),
    )


class Sleeping:
    """A Scoring that takes its time and does nothing in it."""

    def __init__(self, mean_seconds: float) -> None:
        self._mean_seconds = mean_seconds

    def score(self, candidate: RescaleFactors, document_ids: Sequence[str]) -> list[Measurement]:
        found = [measurement_of(candidate, document, self._mean_seconds) for document in document_ids]
        time.sleep(math.fsum(entry.seconds for entry in found))
        return found


def actors(num_workers: int, mean_seconds: float) -> Scorer:
    """Return a pool of real actors, all of them ready."""
    if not ray.is_initialized():
        ray.init(num_cpus=128, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)

    class LocalSleeping(Sleeping):  # nested, so that its code travels to the workers
        pass

    documents = [
        NeedleDocument(
            id=document,
            split="search",
            token_ids=np.zeros(8, dtype=np.int32),
            answer_start=4,
            depth=0.5,
            needle=Needle("key", "1"),
            passage_id="",
            passage_sha256="",
            sha256="",
        )
        for document in DOCUMENTS
    ]
    pool = RayPool(lambda documents: LocalSleeping(mean_seconds), documents, num_workers=num_workers)
    warm_up(pool, num_workers)
    return pool


def warm_up(pool: RayPool, num_workers: int) -> None:
    """Wait until every worker has started."""
    factors = make_sampler(64, 16, "generational").propose([])
    space = make_sampler(64, 16, "generational").space
    candidate = space.candidate(factors.params, method="warm-up")
    while pool.num_workers < num_workers:
        pool.submit(Task(candidate, ("document-0",)))
        pool.collect()


@dataclass
class Simulated:
    """A Scorer whose workers' time is virtual; what the driver takes between two calls is added to it."""

    num: int
    mean_seconds: float
    now: float = 0.0
    free_at: list[float] = field(default_factory=list)
    held: list[int] = field(default_factory=list)
    waiting: deque[Task] = field(default_factory=deque)
    running: list[tuple[float, int, int, Task]] = field(default_factory=list)
    left_at: float | None = None
    num_begun: int = 0
    num_retries: int = 0
    accelerators: tuple[str, ...] = ()
    speeds: tuple[WorkerSpeed, ...] = ()

    def __post_init__(self) -> None:
        self.free_at, self.held = [0.0] * self.num, [0] * self.num

    @property
    def capacity(self) -> int:
        return TASKS_PER_WORKER * self.num

    @property
    def num_workers(self) -> int:
        return self.num

    def submit(self, task: Task) -> None:
        self._count_the_driver()
        self.waiting.append(task)
        self._dispatch()
        self.left_at = time.perf_counter()

    def collect(self) -> list[Measurement]:
        self._count_the_driver()
        finish, _, worker, task = heappop(self.running)
        self.now = max(self.now, finish)
        self.held[worker] -= 1
        self._dispatch()
        found = [measurement_of(task.candidate, document, self.mean_seconds) for document in task.documents]
        self.left_at = time.perf_counter()
        return found

    def close(self) -> None:
        self.waiting.clear()

    def _count_the_driver(self) -> None:
        if self.left_at is not None:
            self.now += time.perf_counter() - self.left_at

    def _dispatch(self) -> None:
        while self.waiting:
            worker = min(range(self.num), key=lambda number: (self.held[number], self.free_at[number]))
            if self.held[worker] >= TASKS_PER_WORKER:
                return
            task = self.waiting.popleft()
            key = candidate_key(task.candidate)
            start = max(self.now, self.free_at[worker])
            finish = start + sum(seconds_of(key, document, self.mean_seconds) for document in task.documents)
            self.free_at[worker] = finish
            self.held[worker] += 1
            self.num_begun += 1
            heappush(self.running, (finish, self.num_begun, worker, task))


def simulated(num_workers: int, mean_seconds: float) -> Scorer:
    return Simulated(num_workers, mean_seconds)


class Watched:
    """A Scorer with a clock: virtual where its workers are."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._start = 0.0
        self.num_tasks = 0

    def begin(self) -> None:
        self._start = time.perf_counter()

    def elapsed(self) -> float:
        return self._scorer.now if isinstance(self._scorer, Simulated) else time.perf_counter() - self._start

    @property
    def capacity(self) -> int:
        return self._scorer.capacity

    @property
    def num_workers(self) -> int:
        return self._scorer.num_workers

    @property
    def num_retries(self) -> int:
        return self._scorer.num_retries

    @property
    def accelerators(self) -> tuple[str, ...]:
        return self._scorer.accelerators

    @property
    def speeds(self) -> tuple[WorkerSpeed, ...]:
        return self._scorer.speeds

    def submit(self, task: Task) -> None:
        self.num_tasks += 1
        self._scorer.submit(task)

    def collect(self) -> list[Measurement]:
        return self._scorer.collect()

    def close(self) -> None:
        self._scorer.close()


@dataclass
class Seconds:
    """Time spent in the ledger."""

    wall: float = 0.0
    cpu: float = 0.0


@contextmanager
def ledger_timer() -> Iterator[Seconds]:
    """Count the time that writing trials to the storage takes; the sampler's is the driver's."""
    spent = Seconds()

    def timed(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
            wall, cpu = time.perf_counter(), time.process_time()
            result = function(*args, **kwargs)
            spent.wall += time.perf_counter() - wall
            spent.cpu += time.process_time() - cpu
            return result

        return call

    with (
        mock.patch.object(Trials, "_add", timed(Trials._add)),
        mock.patch.object(Trials, "_close", timed(Trials._close)),
    ):
        yield spent


if __name__ == "__main__":
    main()
