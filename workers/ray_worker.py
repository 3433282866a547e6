"""RayWorker: one place in the pool and the actor that fills it now, with the tasks that it holds."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import sleep
from typing import NamedTuple, TypeAlias

import ray
from ray import ObjectRef
from ray.actor import ActorHandle

from needles.document import NeedleDocument
from results.measurement import Measurement
from workers.actor import ScoringActor, WorkerPlace
from workers.scorer import ScoringFactory, Task

LONGEST_PAUSE = 60.0
"""Seconds that a place that fails again and again stays empty."""
GREETING_SECONDS = 1.0
"""How often an idle worker is asked whether it is alive: nothing else would tell that it died."""
FRESH_SECONDS = 2.0
"""How long an answer says that a worker is alive; one that lets a greeting wait for longer gets no task."""

Handle: TypeAlias = "ActorHandle[ScoringActor]"
Awaited: TypeAlias = "ObjectRef[None] | ObjectRef[WorkerPlace] | ObjectRef[list[Measurement]]"


@dataclass(eq=False)
class Attempt:
    """A task and how often it was tried in vain."""

    task: Task
    """What to measure."""
    num_failed: int = 0
    """Tries so far that gave no measurement."""
    is_suspect: bool = False
    """Whether a worker died with it. It is measured alone then: a death can swallow the answer to what came before."""


class _Held(NamedTuple):
    attempt: Attempt
    answer: "ObjectRef[list[Measurement]]"


class RayWorker:
    """Waiting for a place, starting, ready, or away until its next start. A lost actor is never used again."""

    def __init__(
        self,
        make_actor: Callable[[], Handle],
        make: ScoringFactory,
        documents: "ObjectRef[tuple[NeedleDocument, ...]]",
    ) -> None:
        """Take the way to an actor; `start` is for the caller.

        Args:
            make_actor: Asks Ray for one; returns at once.
            make: Makes its scoring.
            documents: Documents that tasks name by id.
        """
        self._make_actor = make_actor
        self._make = make
        self._documents = documents
        self._actor: Handle | None = None
        self._greeting: ObjectRef[None] | None = None
        self._start: ObjectRef[WorkerPlace] | None = None
        self._held: deque[_Held] = deque()
        self._heard = 0.0
        self.place: WorkerPlace | None = None
        """Where the actor runs; None while it does not."""
        self.since = 0.0
        """When that which is awaited of it was asked for or begun, or when it may be asked for again; monotonic s."""
        self.num_failures = 0
        """How often the place was lost since a task was last finished in it."""
        self.num_raised = 0
        """Tasks in a row that raised."""

    @property
    def is_away(self) -> bool:
        """Whether there is no actor."""
        return self._actor is None

    @property
    def num_held(self) -> int:
        """Tasks given and not finished."""
        return len(self._held)

    @property
    def is_suspicious(self) -> bool:
        """Whether it holds a task that must stay alone."""
        return any(held.attempt.is_suspect for held in self._held)

    @property
    def first(self) -> Attempt | None:
        """What it measures now."""
        return self._held[0].attempt if self._held else None

    @property
    def is_starting(self) -> bool:
        """Whether its process is there and makes its scoring."""
        return self._start is not None

    @property
    def is_greeted(self) -> bool:
        """Whether it was asked for a sign of life and has not given it: no task given since then has begun."""
        return self._greeting is not None

    @property
    def awaited(self) -> "Awaited | None":
        """What comes from it next: a sign of life, its start, or the first task's measurements."""
        if self._greeting is not None:
            return self._greeting
        if self._start is not None:
            return self._start
        return self._held[0].answer if self._held else None

    def is_fresh(self, now: float) -> bool:
        """Return whether it is known to be alive.

        Args:
            now: Monotonic seconds.
        """
        return self._greeting is None and now - self._heard < FRESH_SECONDS

    def is_silent(self, now: float) -> bool:
        """Return whether it should have given a sign of life by now.

        Args:
            now: Monotonic seconds.
        """
        return self._greeting is not None and now - self.since > FRESH_SECONDS

    def start(self, now: float) -> None:
        """Ask Ray for an actor; returns at once, however long Ray takes to find room for it.

        Args:
            now: Monotonic seconds.
        """
        self._actor = self._make_actor()
        self._greet(now)
        self.num_raised = 0

    def greet_if_idle(self, now: float) -> None:
        """Ask for a sign of life when there was none for a while and none is to be expected.

        Args:
            now: Monotonic seconds.
        """
        if self.place is not None and self.awaited is None and now - self._heard > GREETING_SECONDS:
            self._greet(now)

    def answer(self, now: float) -> None:
        """Note a sign of life; a new actor is told to make its scoring.

        Args:
            now: Monotonic seconds.
        """
        self._greeting = None
        self._heard = self.since = now
        if self.place is None:
            assert self._actor is not None
            self._start = self._actor.start.remote(self._make, self._documents)

    def begin(self, place: WorkerPlace, now: float) -> None:
        """Note that the actor is ready.

        Args:
            place: Where.
            now: Monotonic seconds.
        """
        self.place = place
        self._start = None
        self._heard = now

    def give(self, attempt: Attempt, now: float) -> None:
        """Hand over a task, to be measured after those that it holds.

        An idle worker is greeted just before, so that a task is known not to have begun where the worker was dead. A
        suspect is not: it might kill the worker before the answer is out, again and again, and count as never tried.

        Args:
            attempt: The task.
            now: Monotonic seconds.
        """
        assert self._actor is not None
        if self.awaited is None:
            self.since = now
            if not attempt.is_suspect:
                self._greet(now)
        self._held.append(_Held(attempt, self._actor.score.remote(attempt.task)))

    def finish_first(self, now: float) -> Attempt:
        """Drop the first task; the next one runs from now on.

        Args:
            now: Monotonic seconds.

        Returns:
            The task that was dropped.
        """
        self._heard = self.since = now
        return self._held.popleft().attempt

    def lose(self, now: float, *, started: bool) -> list[Attempt]:
        """End the actor for good, whatever state it is in, and say when the next may be asked for.

        The first loss after a finished task costs no time, the next ones 1, 2, 4, ... seconds, so that a broken node
        does not eat task after task; a start that failed is one loss further.

        Args:
            now: Monotonic seconds.
            started: Whether it was ever ready.

        Returns:
            The tasks that it held, in order.
        """
        self.end()
        self.num_failures += 1
        num_pauses = self.num_failures - started
        self.since = now + (min(LONGEST_PAUSE, 2.0 ** (num_pauses - 1)) if num_pauses else 0.0)
        lost = [held.attempt for held in self._held]
        self._held.clear()
        return lost

    def end(self) -> None:
        """End the actor; a stopped process is killed by Ray after some seconds."""
        if self._actor is not None:
            ray.kill(self._actor)
        self._actor = self._greeting = self._start = self.place = None

    def _greet(self, now: float) -> None:
        assert self._actor is not None
        self._greeting = self._actor.answer.remote()
        self.since = now


def arrived(awaited: list[Awaited], seconds: float) -> list[Awaited]:
    """Return what has come of the workers.

    Args:
        awaited: What is awaited of them.
        seconds: How long to wait for the first.

    Returns:
        All that is there; nothing if the time was over before.
    """
    if not awaited:
        sleep(seconds)
        return []
    first, rest = ray.wait(awaited, num_returns=1, timeout=seconds)
    if not first or not rest:
        return first
    more, _ = ray.wait(rest, num_returns=len(rest), timeout=0)
    return [*first, *more]
