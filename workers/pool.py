"""RayPool: tasks measured by actors on a Ray cluster, in completion order, whatever becomes of single actors."""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import inf
from time import monotonic
from typing import cast

import ray
from ray.exceptions import RayError, RayTaskError

from needles.document import NeedleDocument
from results.measurement import Measurement
from workers.actor import ScoringActor, WorkerPlace
from workers.cluster import ClusterWatch, check_room, connect, share_documents
from workers.deadline import Deadline
from workers.ray_worker import Attempt, Awaited, Handle, RayWorker, arrived
from workers.scorer import (
    ClusterError,
    ScoringFactory,
    Task,
    WorkerSpeed,
    failed_measurements,
    failure_reason,
    given_up,
)

TASKS_PER_WORKER = 2
"""Tasks that a worker holds: one that it measures, and one so that it need not wait for the driver."""
LOOK_SECONDS = 1.0
"""How often deadlines and pauses are looked at while nothing happens."""
QUIET_SECONDS = 60.0
"""How often it is said that nothing happens."""
ANSWER_SECONDS = 60.0
"""How long an idle worker may take to say that it is alive."""
MOST_GIVEN_UP = 5
"""Tasks in a row that may not all be given up: something else than a task is wrong then."""

logger = logging.getLogger(__name__)


class RayPool:
    """The Scorer on a Ray cluster: every worker holds the model, tasks go to whichever has least to do.

    A worker that dies, hangs, or raises twice in a row is replaced, and its tasks are measured by others; a task that
    is tried in vain too often becomes failed measurements. Workers for which there is no room join when there is.
    """

    def __init__(
        self,
        make: ScoringFactory,
        documents: Sequence[NeedleDocument],
        *,
        num_workers: int,
        min_workers: int | None = None,
        gpus_per_worker: float = 0.0,
        cpus_per_worker: float = 1.0,
        start_seconds: float = 1800.0,
        max_retries: int = 3,
        document_timeout: float | None = None,
    ) -> None:
        """Ask for all workers and return when the first is ready; the others join as they come.

        Uses the Ray that this process is connected to; else connects to the cluster that Ray finds (RAY_ADDRESS, or
        one on this machine), else starts one here, and leaves or ends that one at `close`.

        Args:
            make: Makes a worker's scoring, called on every worker: `functools.partial(load_scoring, load=...)`.
            documents: Documents that tasks name by id; put into the cluster once.
            num_workers: Actors; at least 1.
            min_workers: Actors that the cluster must have room for now; None for all of them.
            gpus_per_worker, cpus_per_worker: What each actor reserves; a worker without GPUs is not kept from any.
            start_seconds: How long there may be no worker at all, at the start and later, and how long one may take to
                load the model; waiting for room is not counted.
            max_retries: How often a task is tried again.
            document_timeout: Seconds per document after which a worker is taken to hang; None for a learnt limit.

        Raises:
            ValueError: A number is out of range, the cluster cannot be reached, runs another version or lacks room, a
                worker cannot make its scoring, or the time is over before the first one has.
            ClusterError: The cluster is lost meanwhile.
        """
        _check_numbers(num_workers, min_workers, max_retries)
        self._deadline = Deadline(document_timeout)
        self._documents = {document.id: document for document in documents}
        self._max_retries = max_retries
        self._start_seconds = start_seconds
        self._workers: list[RayWorker] = []
        self._waiting: deque[Attempt] = deque()
        self._finished: deque[list[Measurement]] = deque()
        self._num_retries = 0
        self._last_loss = "none"
        self._last_failure = ""
        self._has_begun = False
        self._num_failed_starts = 0
        self._num_given_up = 0
        self._is_broken = False
        self._watch: ClusterWatch | None = None
        with ExitStack() as undo:
            self._owns_ray = connect()
            undo.callback(self.close)
            check_room(min_workers or num_workers, {"CPU": cpus_per_worker, "GPU": gpus_per_worker})
            actor = ray.remote(ScoringActor).options(num_cpus=cpus_per_worker, num_gpus=gpus_per_worker)
            shared = share_documents(documents)
            self._workers = [RayWorker(lambda: cast(Handle, actor.remote()), make, shared) for _ in range(num_workers)]
            self._watch = ClusterWatch()
            self._wait_for_first()
            undo.pop_all()

    @property
    def capacity(self) -> int:
        """Two tasks for each worker, so that none waits for the driver."""
        return TASKS_PER_WORKER * len(self._workers)

    @property
    def num_workers(self) -> int:
        """Workers that are ready."""
        return len(self._ready())

    @property
    def num_retries(self) -> int:
        """Tasks that were tried again so far."""
        return self._num_retries

    @property
    def accelerators(self) -> tuple[str, ...]:
        """Name of each device that ready workers hold, once each where several share it."""
        devices = {device for place in self.places for device in place.accelerators}
        return tuple(sorted(device.name for device in devices))

    @property
    def speeds(self) -> tuple[WorkerSpeed, ...]:
        """What the device of each ready worker can do, of those that say it."""
        return tuple(place.speed for place in self.places if place.speed is not None)

    @property
    def places(self) -> tuple[WorkerPlace, ...]:
        """Where the ready workers run."""
        return tuple(worker.place for worker in self._workers if worker.place is not None)

    def submit(self, task: Task) -> None:
        """Take a task; a worker that has room gets it at once.

        Args:
            task: What to measure.

        Raises:
            ClusterError: The cluster is gone.
        """
        assert self._watch is not None
        self._waiting.append(Attempt(task))
        self._watch.check()
        with _cluster_errors():
            if any(worker.is_greeted and not worker.num_held for worker in self._ready()):
                self._take_arrived(0)  # nothing for one that died while there was nothing to do
            self._dispatch(monotonic())

    def collect(self) -> list[Measurement]:
        """Wait for the task that finishes first.

        Returns:
            One measurement or failure per document of the task; empty if there is no task.

        Raises:
            ClusterError: The cluster is gone, has had no worker for too long, or can measure nothing any more.
        """
        assert self._watch is not None
        quiet_since = said_at = monotonic()
        while not self._finished:
            if self._is_broken:
                raise self._none_measured()
            if not self._waiting and not any(worker.num_held for worker in self._workers):
                return []
            if monotonic() - said_at > QUIET_SECONDS:
                said_at = monotonic()
                self._say_quiet(said_at - quiet_since)
            self._watch.check()
            self._step()
            self._check_alive()
        return self._finished.popleft()

    def close(self) -> None:
        """End the workers, and Ray if the pool started it or connected to it. Harmless when called twice."""
        if ray.is_initialized() and not (self._watch and self._watch.is_lost):
            for worker in self._workers:
                worker.end()
            if self._owns_ray:
                ray.shutdown()
        self._workers = []
        self._waiting.clear()
        self._finished.clear()

    def _ready(self) -> list[RayWorker]:
        return [worker for worker in self._workers if worker.place is not None]

    def _wait_for_first(self) -> None:
        self._ready_at = monotonic()
        while not self._ready():
            if monotonic() - self._ready_at > self._start_seconds:
                raise ValueError(
                    f"at least one of {len(self._workers)} workers must start within {self._start_seconds:g} seconds, "
                    "got none. Is the cluster busy with other work?"
                )
            self._step()
        self._has_begun = True

    def _step(self) -> None:
        """Take what has come, within a second, and do all that is due."""
        with _cluster_errors():
            self._take_arrived(LOOK_SECONDS)
            now = monotonic()
            for worker in self._workers:
                if worker.is_away and now >= worker.since:
                    worker.start(now)
                elif not worker.is_away:
                    self._end_if_late(worker, now)
            self._dispatch(now)
            for worker in self._workers:
                worker.greet_if_idle(now)

    def _take_arrived(self, seconds: float) -> None:
        awaited = {worker.awaited: worker for worker in self._workers if worker.awaited is not None}
        for answer in arrived(list(awaited), seconds):
            self._receive(awaited[answer], answer)

    def _receive(self, worker: RayWorker, answer: Awaited) -> None:
        try:
            value = ray.get(answer)
        except RayTaskError as error:
            self._take_raised(worker, failure_reason(error.cause))
        except RayError as error:
            self._replace(worker, failure_reason(error))
        else:
            if value is None:
                worker.answer(monotonic())
            elif isinstance(value, WorkerPlace):
                self._take_start(worker, value)
            else:
                self._take_measurements(worker, value)

    def _take_start(self, worker: RayWorker, place: WorkerPlace) -> None:
        now = monotonic()
        worker.begin(place, now)
        logger.info(
            "a worker is ready, %d of %d: %s, process %d, after %.0f s",
            *(self.num_workers, len(self._workers), place.node, place.pid, now - worker.since),
        )

    def _take_measurements(self, worker: RayWorker, measurements: list[Measurement]) -> None:
        task = worker.finish_first(monotonic()).task
        worker.num_failures = worker.num_raised = self._num_given_up = 0
        for measurement in measurements:
            if measurement.failure is None:
                length = self._documents[measurement.document].length
                self._deadline.learn(length, measurement.seconds, with_gradient=task.with_gradient)
        self._finished.append(measurements)

    def _take_raised(self, worker: RayWorker, reason: str) -> None:
        worker.num_raised += 1
        if not self._has_begun:
            raise _cannot_start(reason)  # a node that died may be gone; a model that cannot be loaded stays so
        if worker.place is None or worker.is_greeted or worker.num_raised > 1:
            self._replace(worker, reason)
        else:
            self._retry(worker.finish_first(monotonic()), reason)

    def _end_if_late(self, worker: RayWorker, now: float) -> None:
        limit, silence = self._limit(worker), now - worker.since
        if silence > limit:
            self._replace(worker, f"{'not ready after' if worker.is_starting else 'no answer in'} {limit:g} s")

    def _limit(self, worker: RayWorker) -> float:
        if worker.is_starting:
            return self._start_seconds
        if worker.place is None:
            return inf  # there may be no room for it for days
        if worker.is_greeted:
            return ANSWER_SECONDS
        if worker.first is None:
            return inf
        task = worker.first.task
        lengths = [self._documents[document].length for document in task.documents]
        return self._deadline.seconds(lengths, with_gradient=task.with_gradient)

    def _replace(self, worker: RayWorker, reason: str) -> None:
        """End a worker and put its tasks back; the one that ran was tried in vain, those behind it were not.

        None ran in one that has not answered since it was idle: it may have been dead for long.
        """
        if not self._has_begun:
            self._num_failed_starts += 1
            if self._num_failed_starts > self._max_retries:
                raise _cannot_start(reason)
        place, num_tried = worker.place, 0 if worker.is_greeted else 1
        if place is not None:
            self._ready_at = monotonic()
        lost = worker.lose(monotonic(), started=place is not None)
        self._last_loss = reason
        logger.warning(
            "a worker is lost, %d of %d are left, it is replaced%s: %s",
            self.num_workers,
            len(self._workers),
            f" ({place.node}, process {place.pid})" if place else " (it did not start)",
            reason,
        )
        for attempt in lost:
            attempt.is_suspect = True
        self._waiting.extendleft(reversed(lost[num_tried:]))
        for attempt in lost[:num_tried]:
            self._retry(attempt, reason)

    def _retry(self, attempt: Attempt, reason: str) -> None:
        attempt.num_failed += 1
        if attempt.num_failed > self._max_retries:
            failure = given_up(attempt.num_failed, reason)
            logger.warning("a task failed: %s", failure)
            self._last_failure = reason
            self._num_given_up += 1
            if self._num_given_up >= self._most_given_up():
                self._is_broken = True
                return  # `collect` says so when those before are collected; a run taken up tries this one again
            self._finished.append(failed_measurements(attempt.task, self._documents, failure))
            return
        self._num_retries += 1
        self._waiting.appendleft(attempt)

    def _dispatch(self, now: float) -> None:
        free = [worker for worker in self._ready() if not worker.is_suspicious and not worker.is_silent(now)]
        while free and self._waiting:
            worker = min(free, key=lambda candidate: (candidate.num_held, not candidate.is_fresh(now)))
            if worker.num_held >= TASKS_PER_WORKER:
                return
            if self._waiting[0].is_suspect and (worker.num_held or not worker.is_fresh(now)):
                return
            worker.give(self._waiting.popleft(), now)
            if worker.is_suspicious:
                free.remove(worker)

    def _most_given_up(self) -> int:
        """Return how many are too many; without retries, a lost node alone may cost as many as it had workers."""
        return MOST_GIVEN_UP if self._max_retries else MOST_GIVEN_UP + len(self._workers)

    def _none_measured(self) -> ClusterError:
        return ClusterError(
            f"the workers must be able to score, got {self._most_given_up()} tasks in a row that were given up, the "
            f"last: {self._last_failure}. Start again with --resume once the cause is gone."
        )

    def _say_quiet(self, seconds: float) -> None:
        logger.warning(
            "no document for %.0f s: %d of %d workers are ready, %d tasks are with them, %d wait; the last loss: %s",
            *(seconds, self.num_workers, len(self._workers), sum(worker.num_held for worker in self._workers)),
            *(len(self._waiting), self._last_loss),
        )

    def _check_alive(self) -> None:
        now = monotonic()
        if self._ready() or not self._waiting:
            self._ready_at = now
        elif now - self._ready_at > self._start_seconds:
            raise ClusterError(
                f"at least one worker must be alive, got none for {self._start_seconds:g} seconds, the last: "
                f"{self._last_loss}. Look at the cluster with `ray status`."
            )


def _cannot_start(reason: str) -> ValueError:
    return ValueError(f"every worker must load the model, got {reason}")


@contextmanager
def _cluster_errors() -> Iterator[None]:
    """Turn what Ray raises by itself, not as a task's answer, into the loss of the cluster."""
    try:
        yield
    except (RayError, ConnectionError) as error:
        raise ClusterError(f"the Ray cluster must be reachable, got {failure_reason(error)}. Is it up?") from error


def _check_numbers(num_workers: int, min_workers: int | None, max_retries: int) -> None:
    if num_workers < 1:
        raise ValueError(f"a pool must have at least 1 worker, got {num_workers}. Use 0 workers for no Ray at all.")
    if min_workers is not None and not 1 <= min_workers <= num_workers:
        raise ValueError(
            f"--min-workers must be between 1 and the {num_workers} workers asked for, got {min_workers}. Correct it."
        )
    if max_retries < 0:
        raise ValueError(f"--retries must be at least 0, got {max_retries}. Correct it.")
