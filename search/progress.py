"""What a search shows while it runs: a bar on a terminal, lines in a log, and a status that others can read."""

import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from results.measurement import Measurement
from results.speed import Speed, shown
from results.status import RunStatus, State
from workers.scorer import Scorer, WorkerSpeed

LINE_SECONDS = 30.0
"""Seconds between two lines in a log."""
STATUS_SECONDS = 2.0
"""Seconds between two publications of the status."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run is going to do."""

    model: str
    """The model, as its user named it."""
    original_length: int
    """Pre-training window, tokens."""
    target_length: int
    """Window to reach, tokens."""
    num_candidates: int
    """Formulas and searched candidates, about."""
    num_documents: int
    """Documents to measure, all splits together, about."""
    seconds_before: float = 0.0
    """Seconds that the run took until it was taken up again."""


class SearchProgress:
    """Counts documents and candidates, keeps the best perplexity so far, and shows both; a context manager."""

    def __init__(
        self,
        plan: Plan,
        *,
        console: Console,
        publish: Callable[[RunStatus], None] = lambda status: None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """Begin to count.

        Args:
            plan: What is going to be done.
            console: Where the bar goes; without a terminal there are lines in the log instead.
            publish: Given the status every few seconds.
            clock: Returns seconds.
        """
        self.num_candidates = 0
        """Candidates measured so far, those of earlier processes among them."""
        self.num_documents = 0
        """Documents measured so far, likewise."""
        self.num_failed = 0
        """Documents that could not be measured."""
        self.best = math.nan
        """Lowest perplexity on the search documents so far."""
        self.best_method = ""
        """Method that it belongs to."""
        self._plan = plan
        self._publish = publish
        self._clock = clock
        self._start = self._last_line = self._last_status = clock()
        self._rate = _Rate(self._start)
        self._before, self._computed = _Computed(), _Computed()
        self._speeds: tuple[WorkerSpeed, ...] = ()
        self._phase = "starting"
        self._num_workers = self._num_retries = 0
        self._is_terminal = console.is_terminal
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("documents"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID = self._bar.add_task("formulas", total=plan.num_documents)

    def __enter__(self) -> "SearchProgress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    @property
    def seconds(self) -> float:
        """Seconds that the run has taken, those of earlier processes among them."""
        return self._plan.seconds_before + self._clock() - self._start

    @property
    def speed(self) -> Speed:
        """What the workers computed; earlier processes count until there is something new, as devices may differ."""
        computed = self._computed if self._computed.seconds else self._before
        ceilings = [speed.ceiling for speed in self._speeds]
        return Speed(
            device=" and ".join(sorted({speed.device for speed in self._speeds})) or None,
            document_flops=self._computed.document_flops or self._before.document_flops,
            flops_per_second=computed.flops_per_second,
            ceiling=math.fsum(ceilings) / len(ceilings) if ceilings else None,
            peak_bytes=computed.peak_bytes,
        )

    def recovered(self, measurements: Sequence[Measurement]) -> None:
        """Count measurements of earlier processes."""
        self._before.add(measurements)
        self._count(measurements)

    def phase(self, name: str) -> None:
        """Say in the log and in the status what the run does now."""
        self._phase = name
        logger.info("%s", name)
        self._publish(self.status("running"))

    def advance(self, measurements: Sequence[Measurement], scorer: Scorer) -> None:
        """Count measurements that have just been made, and show where the run is if it is time to."""
        now = self._clock()
        self._num_workers, self._num_retries = scorer.num_workers, scorer.num_retries
        self._rate.add(now, measurements, self._num_workers)
        self._computed.add(measurements)
        self._count(measurements)
        self._take_speeds(scorer)
        if now - self._last_status >= STATUS_SECONDS:
            self._last_status = now
            self._publish(self.status("running"))
        if now - self._last_line >= LINE_SECONDS and not self._is_terminal:
            self._last_line = now
            logger.info("%s", self.line())

    def candidate(self, perplexity: float, method: str) -> None:
        """Count a candidate and keep its perplexity if it is the best; NaN never is."""
        self.num_candidates += 1
        if not math.isnan(perplexity) and not perplexity >= self.best:
            self.best, self.best_method = perplexity, method
        self._bar.update(self._task, description=f"best perplexity {self.best:.4f}")

    def generation(self, number: int) -> None:
        """Say in the log that a generation is complete."""
        logger.info("generation %d is complete: %s", number, self.line())

    def line(self) -> str:
        """Return where the run is, in one line."""
        status = self.status("running")
        left = "?" if math.isnan(status.seconds_left) else _duration(status.seconds_left)
        workers = f"{status.num_workers} worker{'s' * (status.num_workers != 1)}"
        retries = f", {status.num_retries} retries" if status.num_retries else ""
        rate = status.speed.rate and f"{status.speed.rate}, "
        return (
            f"{status.num_candidates}/{status.total_candidates} candidates, {status.num_documents}/"
            f"{status.total_documents} documents, best perplexity {status.best_perplexity:.4f} ({status.best_method}), "
            f"{status.documents_per_second:.2f} documents/s, {workers} at {status.utilisation:.0%}{retries}, "
            f"{rate}about {left} left"
        )

    def status(self, state: State, reason: str | None = None) -> RunStatus:
        """Return where the run is, for `status.json`."""
        now = self._clock()
        per_second = self._rate.documents_per_second(now)
        left = max(0, self._plan.num_documents - self.num_documents)
        return RunStatus(
            state=state,
            reason=reason,
            model=self._plan.model,
            original_length=self._plan.original_length,
            target_length=self._plan.target_length,
            phase=self._phase,
            num_candidates=self.num_candidates,
            total_candidates=max(self._plan.num_candidates, self.num_candidates),
            num_documents=self.num_documents,
            total_documents=max(self._plan.num_documents, self.num_documents),
            best_perplexity=self.best,
            best_method=self.best_method or None,
            documents_per_second=per_second,
            utilisation=self._rate.utilisation(now),
            num_workers=self._num_workers,
            num_retries=self._num_retries,
            num_failed=self.num_failed,
            seconds=round(self.seconds, 3),
            seconds_left=left / per_second if per_second > 0 else math.nan,
            updated=datetime.now(UTC).isoformat(timespec="seconds"),
            speed=self.speed,
        )

    def _take_speeds(self, scorer: Scorer) -> None:
        """Keep what the workers' devices can do, also while all of them are away; the first time it is said."""
        is_first = not self._speeds
        self._speeds = scorer.speeds or self._speeds
        ceiling = self.speed.ceiling
        if is_first and ceiling is not None:
            logger.info("a plain matmul does %s on %s", shown(ceiling, "FLOP/s"), self.speed.device)

    def _count(self, measurements: Sequence[Measurement]) -> None:
        self.num_documents += len(measurements)
        self.num_failed += sum(measurement.failure is not None for measurement in measurements)
        self._bar.advance(self._task, len(measurements))


class _Computed:
    """Operations of documents that say how many they needed, and the time that these took."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.document_flops: float | None = None
        self.peak_bytes: int | None = None
        self._flops = 0.0

    @property
    def flops_per_second(self) -> float | None:
        return self._flops / self.seconds if self.seconds else None

    def add(self, measurements: Sequence[Measurement]) -> None:
        for measurement in measurements:
            if measurement.peak_bytes is not None:
                self.peak_bytes = max(measurement.peak_bytes, self.peak_bytes or 0)
            if measurement.flops is None or measurement.failure is not None:
                continue
            self._flops += measurement.flops
            self.seconds += measurement.seconds
            if measurement.gradient is None:  # those of the target length need most
                self.document_flops = max(measurement.flops, self.document_flops or 0.0)


class _Rate:
    """Documents per second and the workers' share of busy time, over the documents that came last."""

    def __init__(self, start: float) -> None:
        self._since = start
        self._num_workers = 1
        self._last: deque[tuple[float, float]] = deque()

    def add(self, now: float, measurements: Sequence[Measurement], num_workers: int) -> None:
        self._num_workers = max(1, num_workers)
        self._last.extend((now, measurement.seconds) for measurement in measurements)
        while len(self._last) > 16 + 8 * self._num_workers:  # enough that one slow document is no news
            self._since, _ = self._last.popleft()

    def documents_per_second(self, now: float) -> float:
        return len(self._last) / (now - self._since) if now > self._since else 0.0

    def utilisation(self, now: float) -> float:
        busy = math.fsum(seconds for _, seconds in self._last)
        return min(1.0, busy / ((now - self._since) * self._num_workers)) if now > self._since else 0.0


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
