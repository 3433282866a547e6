"""RayWorker: one place in the pool and the actor that fills it now, with the tasks that it holds."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import ray
from ray import ObjectRef
from ray.actor import ActorHandle

from results.measurement import Measurement
from workers.actor import ScoringActor, WorkerPlace
from workers.scorer import Task

LONGEST_PAUSE = 60.0
"""Seconds that a place that fails again and again stays empty."""

Handle: TypeAlias = "ActorHandle[ScoringActor]"
Awaited: TypeAlias = "ObjectRef[WorkerPlace] | ObjectRef[list[Measurement]]"


@dataclass(eq=False)
class Attempt:
    """A task and how often it was tried in vain."""

    task: Task
    """What to measure."""
    num_failed: int = 0
    """Tries so far that gave no measurement."""
    is_suspect: bool = False
    """Whether a worker died with it. It is measured alone then: a death can swallow the answer to the task before."""


class _Held(NamedTuple):
    attempt: Attempt
    answer: "ObjectRef[list[Measurement]]"


class RayWorker:
    """Starting, ready, or away until its next start. An actor that is lost is never used again."""

    def __init__(self, make_actor: Callable[[], Handle]) -> None:
        """Take the way to an actor; `start` is for the caller.

        Args:
            make_actor: Asks Ray for one; returns at once.
        """
        self._make_actor = make_actor
        self._actor: Handle | None = None
        self._start: ObjectRef[WorkerPlace] | None = None
        self._held: deque[_Held] = deque()
        self.place: WorkerPlace | None = None
        """Where the actor runs; None while it does not."""
        self.since = 0.0
        """When it was asked for, came to its first task, or may be asked for again; monotonic seconds."""
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
    def awaited(self) -> "Awaited | None":
        """What comes from it next: its start, or the first task's measurements."""
        if self._start is not None:
            return self._start
        return self._held[0].answer if self._held else None

    def start(self, now: float) -> None:
        """Ask Ray for an actor; returns at once, however long Ray takes to find room for it.

        Args:
            now: Monotonic seconds.
        """
        self._actor = self._make_actor()
        self._start = self._actor.start.remote()
        self.since = now
        self.num_raised = 0

    def begin(self, place: WorkerPlace) -> None:
        """Note that the actor is ready.

        Args:
            place: Where.
        """
        self.place = place
        self._start = None

    def give(self, attempt: Attempt, now: float) -> None:
        """Hand over a task, to be measured after those that it holds.

        Args:
            attempt: The task.
            now: Monotonic seconds.
        """
        assert self._actor is not None
        if not self._held:
            self.since = now
        self._held.append(_Held(attempt, self._actor.score.remote(attempt.task)))

    def finish_first(self, now: float) -> Attempt:
        """Drop the first task; the next one runs from now on.

        Args:
            now: Monotonic seconds.

        Returns:
            The task that was dropped.
        """
        self.since = now
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
        self._actor = self._start = self.place = None
