"""What a search shows: counts, the best perplexity, lines in a log."""

import io
import logging
import math

import pytest
from rich.console import Console

from search.progress import SearchProgress


def test_the_best_is_the_lowest_perplexity_and_failures_never_are() -> None:
    progress = SearchProgress(10, console=Console(file=io.StringIO()))
    assert math.isnan(progress.best)
    seen = []
    for perplexity in (math.nan, 5.0, math.nan, 7.0, 3.0, math.nan):
        progress.candidate(perplexity)
        seen.append(progress.best)
    assert math.isnan(seen[0])
    assert seen[1:] == [5.0, 5.0, 5.0, 3.0, 3.0]
    assert progress.num_candidates == 6


def test_documents_are_counted() -> None:
    progress = SearchProgress(10, console=Console(file=io.StringIO()))
    progress.advance(3)
    progress.advance(4)
    assert progress.num_document_forwards == 7


def test_a_generation_is_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    progress = SearchProgress(10, console=Console(file=io.StringIO()))
    progress.advance(6)
    progress.candidate(2.5)
    with caplog.at_level(logging.INFO, logger="search.progress"):
        progress.generation(4)
    assert caplog.messages == ["generation 4: 1 candidates, best search perplexity 2.5000, 6 document forwards"]


def test_nothing_is_drawn_into_a_file() -> None:
    output = io.StringIO()
    with SearchProgress(2, console=Console(file=output)) as progress:
        progress.advance(2)
        progress.candidate(2.0)
    assert output.getvalue().strip() == ""


def test_a_terminal_sees_the_best_perplexity_the_documents_and_the_time_left() -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=120, color_system=None)
    with SearchProgress(8, console=console) as progress:
        progress.advance(3)
        progress.candidate(2.125)
    drawn = output.getvalue()
    assert "best perplexity 2.1250" in drawn
    assert "3/8 documents" in drawn
    assert "left" in drawn
