"""RayPool: tasks measured by actors on a Ray cluster, in completion order."""

import logging
import math
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from time import monotonic
from typing import TypeAlias, cast

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from needles.document import NeedleDocument
from results.measurement import Measurement
from workers.actor import ModelLoader, ScoringActor
from workers.scorer import Task, failed_measurements, failure_reason

TASKS_PER_WORKER = 2
"""Tasks worth having in flight for each worker: one that it measures and one that waits for it."""

_Worker: TypeAlias = "ActorHandle[ScoringActor]"

logger = logging.getLogger(__name__)


class RayPool:
    """The Scorer on a Ray cluster: every worker holds the model, tasks go to whichever is free.

    A worker that dies or raises turns its task into failed measurements; nothing is submitted again and no worker is
    replaced. When the last one has died, all tasks fail.
    """

    def __init__(
        self,
        load: ModelLoader,
        documents: Sequence[NeedleDocument],
        *,
        num_workers: int,
        gpus_per_worker: float = 0.0,
        cpus_per_worker: float = 1.0,
        start_seconds: float = 1800.0,
    ) -> None:
        """Start the workers and wait until each has loaded the model.

        Uses the Ray that this process is connected to; else connects to the cluster that Ray finds (RAY_ADDRESS, or
        one on this machine), else starts one here, and leaves or ends that one at `close`.

        Args:
            load: Loads the model, called on every worker: `functools.partial(load_model, path, ...)`.
            documents: Documents that tasks name by id; put into the cluster once.
            num_workers: Actors; at least 1.
            gpus_per_worker, cpus_per_worker: What each actor reserves; a worker without GPUs is not kept from any.
            start_seconds: How long the cluster may take to place and start all workers.

        Raises:
            ValueError: num_workers is below 1, the cluster can never place that many, a worker cannot load the model,
                or the time is over.
        """
        if num_workers < 1:
            raise ValueError(f"a pool must have at least 1 worker, got {num_workers}. Use 0 workers for no Ray at all.")
        self._documents = {document.id: document for document in documents}
        self._num_workers = num_workers
        self._workers: list[_Worker] = []
        self._idle: list[_Worker] = []
        self._waiting: deque[Task] = deque()
        self._running: dict[ObjectRef[list[Measurement]], tuple[_Worker, Task]] = {}
        self._owns_ray = not ray.is_initialized()
        with ExitStack() as undo:
            undo.callback(self.close)
            if self._owns_ray:
                ray.init()
            _check_room(num_workers, {"CPU": cpus_per_worker, "GPU": gpus_per_worker})
            actor = ray.remote(ScoringActor).options(num_cpus=cpus_per_worker, num_gpus=gpus_per_worker)
            shared_documents = ray.put(tuple(documents))
            self._workers = [cast(_Worker, actor.remote(load, shared_documents)) for _ in range(num_workers)]
            _wait_for_start([worker.start.remote() for worker in self._workers], start_seconds)
            undo.pop_all()
        self._idle = list(self._workers)
        logger.info("%d Ray workers have loaded the model", num_workers)

    @property
    def capacity(self) -> int:
        """Two tasks for each worker, so that none waits for the driver."""
        return TASKS_PER_WORKER * self._num_workers

    def submit(self, task: Task) -> None:
        """Take a task; a free worker begins it at once.

        Args:
            task: What to measure.
        """
        self._waiting.append(task)
        self._dispatch()

    def collect(self) -> list[Measurement]:
        """Wait for the task that finishes first.

        Returns:
            One measurement or failure per document of the task; empty if there is no task.
        """
        if not self._running:
            return self._fail_waiting()
        finished, _ = ray.wait(list(self._running), num_returns=1)
        worker, task = self._running.pop(finished[0])
        try:
            measurements: list[Measurement] = ray.get(finished[0])
            self._idle.append(worker)
        except RayTaskError as error:
            measurements = failed_measurements(task, self._documents, failure_reason(error.cause))
            self._idle.append(worker)
        except RayError as error:
            logger.warning("a Ray worker is lost: %s", failure_reason(error))
            measurements = failed_measurements(task, self._documents, failure_reason(error))
        self._dispatch()
        return measurements

    def close(self) -> None:
        """End the workers, and Ray if the pool started it or connected to it. Harmless when called twice."""
        if ray.is_initialized():
            for worker in self._workers:
                ray.kill(worker)
            if self._owns_ray:
                ray.shutdown()
        self._workers, self._idle, self._running = [], [], {}
        self._waiting.clear()

    def _dispatch(self) -> None:
        while self._idle and self._waiting:
            worker, task = self._idle.pop(), self._waiting.popleft()
            self._running[worker.score.remote(task)] = worker, task

    def _fail_waiting(self) -> list[Measurement]:
        if not self._waiting:
            return []
        reason = f"no Ray worker is left of {self._num_workers}"
        return failed_measurements(self._waiting.popleft(), self._documents, reason)


def _check_room(num_workers: int, needed: Mapping[str, float]) -> None:
    nodes: list[Mapping[str, float]] = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    num_places = sum(
        min(
            (math.floor(node.get(kind, 0.0) / amount) for kind, amount in needed.items() if amount > 0),
            default=math.inf,
        )
        for node in nodes
    )
    if num_workers > num_places:
        there = ray.cluster_resources()  # type: ignore[no-untyped-call]
        raise ValueError(
            f"the cluster must have room for {num_workers} workers of {needed['CPU']:g} CPUs and {needed['GPU']:g} "
            f"GPUs each, got room for {num_places}: {there.get('CPU', 0):g} CPUs and {there.get('GPU', 0):g} GPUs on "
            f"{len(nodes)} nodes. Ask for fewer workers or for less each."
        )


def _wait_for_start(starts: list[ObjectRef[None]], start_seconds: float) -> None:
    deadline = monotonic() + start_seconds
    waiting = starts
    while waiting:
        started, waiting = ray.wait(waiting, num_returns=1, timeout=max(0.0, deadline - monotonic()))
        if not started:
            raise ValueError(
                f"all {len(starts)} workers must start within {start_seconds:g} seconds, got "
                f"{len(starts) - len(waiting)}. Is the cluster busy with other work?"
            )
        try:
            ray.get(started)
        except RayError as error:
            cause = error.cause if isinstance(error, RayTaskError) else error
            raise ValueError(f"every worker must load the model, got {failure_reason(cause)}") from error
