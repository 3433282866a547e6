"""What a search shows: counts, the best perplexity, lines in a log, a status for others."""

import io
import logging
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console

from results.measurement import Measurement
from results.speed import Speed
from results.status import RunStatus
from search.progress import Plan, SearchProgress
from workers.scorer import Scorer, WorkerSpeed

PLAN = Plan(
    model="a model",
    original_length=256,
    target_length=2048,
    num_candidates=3,
    num_documents=100,
    seconds_before=100.0,
)


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def published() -> list[RunStatus]:
    return []


@pytest.fixture
def progress(clock: Clock, published: list[RunStatus]) -> SearchProgress:
    return SearchProgress(PLAN, console=Console(file=io.StringIO()), publish=published.append, clock=clock)


@pytest.fixture
def scorer(make_scorer: Callable[..., Scorer]) -> Scorer:
    """One worker."""
    return make_scorer(lambda factors, document: 1.0)


def documents(num: int, seconds: float = 1.0, failure: str | None = None) -> list[Measurement]:
    return [
        Measurement(
            candidate="0" * 16,
            document=str(number),
            split="search",
            depth=0.5,
            sum_nll=math.nan if failure else 1.0,
            num_tokens=0 if failure else 1,
            seconds=seconds,
            failure=failure,
        )
        for number in range(num)
    ]


def test_the_best_is_the_lowest_perplexity_and_failures_never_are(progress: SearchProgress) -> None:
    assert math.isnan(progress.best)
    seen = []
    for perplexity in (math.nan, 5.0, math.nan, 7.0, 3.0, math.nan):
        progress.candidate(perplexity, f"method {perplexity}")
        seen.append(progress.best)
    assert math.isnan(seen[0])
    assert seen[1:] == [5.0, 5.0, 5.0, 3.0, 3.0]
    assert progress.best_method == "method 3.0"
    assert progress.num_candidates == 6


def test_documents_are_counted_and_failures_among_them(progress: SearchProgress, scorer: Scorer) -> None:
    progress.recovered(documents(10))
    progress.advance(documents(3), scorer)
    progress.advance(documents(4, failure="out of memory"), scorer)
    assert progress.num_documents == 17
    assert progress.num_failed == 4


def test_speed_utilisation_and_time_left_worked_out_by_hand(
    progress: SearchProgress, scorer: Scorer, clock: Clock
) -> None:
    progress.recovered(documents(50))  # of an earlier process: they say nothing of this one's speed
    for _ in range(10):
        clock.now += 2.0
        progress.advance(documents(1, seconds=1.5), scorer)
    status = progress.status("running")
    assert status.documents_per_second == pytest.approx(0.5)
    assert status.utilisation == pytest.approx(0.75)
    assert status.seconds_left == pytest.approx((100 - 60) / 0.5)
    assert status.seconds == pytest.approx(100.0 + 20.0)


def test_old_documents_say_nothing_of_the_speed_now(progress: SearchProgress, scorer: Scorer, clock: Clock) -> None:
    for _ in range(100):
        clock.now += 100.0
        progress.advance(documents(1), scorer)
    for _ in range(100):
        clock.now += 0.1
        progress.advance(documents(1, seconds=0.1), scorer)
    assert progress.status("running").documents_per_second == pytest.approx(10.0)
    assert progress.status("running").utilisation == pytest.approx(1.0)


def test_a_log_has_a_line_every_half_minute(
    progress: SearchProgress, scorer: Scorer, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    progress.candidate(2.5, "yarn")
    with caplog.at_level(logging.INFO, logger="search.progress"):
        for _ in range(65):
            clock.now += 1.0
            progress.advance(documents(1, seconds=0.9), scorer)
    assert caplog.messages == [
        "1/3 candidates, 30/100 documents, best perplexity 2.5000 (yarn), 1.00 documents/s, 1 worker at 90%, "
        "about 0:01:10 left",
        "1/3 candidates, 60/100 documents, best perplexity 2.5000 (yarn), 1.00 documents/s, 1 worker at 90%, "
        "about 0:00:40 left",
    ]


def computed(flops: float | None, seconds: float, *, peak_bytes: int | None = None) -> list[Measurement]:
    return [replace(documents(1, seconds)[0], flops=flops, peak_bytes=peak_bytes)]


def test_what_the_workers_compute_worked_out_by_hand(
    progress: SearchProgress, make_scorer: Callable[..., Scorer]
) -> None:
    def scorer(*ceilings: float) -> Scorer:
        return make_scorer(
            lambda factors, document: 1.0, speeds=tuple(WorkerSpeed("a GPU", ceiling, {}) for ceiling in ceilings)
        )

    assert progress.speed == Speed()
    progress.advance(computed(None, 9.0), scorer(1e12, 2e12))  # by a scoring that counts nothing
    progress.advance(computed(4e12, 3.0, peak_bytes=500), scorer(2e12, 4e12))
    progress.advance(computed(2e12, 3.0, peak_bytes=300), scorer())  # all workers are away
    slope = replace(computed(9e12, 4.0, peak_bytes=400)[0], gradient=(1.0,))
    progress.advance([slope, replace(documents(1, 7.0, failure="out of memory")[0], peak_bytes=600)], scorer())
    assert progress.speed == Speed(
        device="a GPU",
        document_flops=4e12,
        flops_per_second=(4e12 + 2e12 + 9e12) / (3.0 + 3.0 + 4.0),
        ceiling=3e12,
        peak_bytes=600,
    )
    assert progress.status("running").speed == progress.speed


def test_devices_of_several_kinds_are_all_named(progress: SearchProgress, make_scorer: Callable[..., Scorer]) -> None:
    speeds = tuple(WorkerSpeed(name, 1e12, {}) for name in ("NVIDIA H200", "NVIDIA A100", "NVIDIA H200"))
    progress.advance(documents(1), make_scorer(lambda factors, document: 1.0, speeds=speeds))
    assert progress.speed.device == "NVIDIA A100 and NVIDIA H200"


def test_an_earlier_process_tells_its_speed_until_there_is_a_new_one(progress: SearchProgress, scorer: Scorer) -> None:
    progress.recovered(documents(3) + computed(1e12, 2.0, peak_bytes=900))  # the first three of an older version
    assert progress.speed == Speed(document_flops=1e12, flops_per_second=5e11, peak_bytes=900)
    progress.advance(computed(1e12, 0.5, peak_bytes=100), scorer)
    assert progress.speed == Speed(document_flops=1e12, flops_per_second=2e12, peak_bytes=100)


def test_the_log_says_the_ceiling_once_and_the_rate_in_every_line(
    progress: SearchProgress, make_scorer: Callable[..., Scorer], caplog: pytest.LogCaptureFixture
) -> None:
    scorer = make_scorer(lambda factors, document: 1.0, speeds=(WorkerSpeed("a CPU, 2 threads", 6.52e10, {}),))
    with caplog.at_level(logging.INFO, logger="search.progress"):
        for _ in range(2):
            progress.advance(computed(4.12e10, 1.0), scorer)
        progress.generation(1)
    assert caplog.messages[0] == "a plain matmul does 65.2 GFLOP/s on a CPU, 2 threads"
    assert len(caplog.messages) == 2
    assert "1 worker at 0%, 41.2 GFLOP/s per worker, 63% of a plain matmul, about ? left" in caplog.messages[1]


def test_the_status_is_published_every_two_seconds_and_at_each_phase(
    progress: SearchProgress, scorer: Scorer, clock: Clock, published: list[RunStatus]
) -> None:
    progress.phase("measuring the formulas")
    for _ in range(9):
        clock.now += 1.0
        progress.advance(documents(1), scorer)
    assert [status.num_documents for status in published] == [0, 2, 4, 6, 8]
    assert {status.phase for status in published} == {"measuring the formulas"}


def test_a_generation_is_a_line_in_the_log(
    progress: SearchProgress, scorer: Scorer, caplog: pytest.LogCaptureFixture
) -> None:
    progress.advance(documents(6), scorer)
    progress.candidate(2.5, "yarn")
    with caplog.at_level(logging.INFO, logger="search.progress"):
        progress.generation(4)
    assert caplog.messages == [
        "generation 4 is complete: 1/3 candidates, 6/100 documents, best perplexity 2.5000 (yarn), 0.00 documents/s, "
        "1 worker at 0%, about ? left"
    ]


def test_nothing_is_drawn_into_a_file(scorer: Scorer) -> None:
    output = io.StringIO()
    with SearchProgress(PLAN, console=Console(file=output)) as progress:
        progress.advance(documents(2), scorer)
        progress.candidate(2.0, "yarn")
    assert output.getvalue().strip() == ""


def test_a_terminal_sees_the_best_perplexity_the_documents_and_the_time_left(scorer: Scorer) -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=120, color_system=None)
    with SearchProgress(PLAN, console=console) as progress:
        progress.advance(documents(3), scorer)
        progress.candidate(2.125, "yarn")
    drawn = output.getvalue()
    assert "best perplexity 2.1250" in drawn
    assert "3/100 documents" in drawn
    assert "left" in drawn
