"""What a search shows while it runs: a bar on a terminal, lines in a log."""

import logging
import math
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

logger = logging.getLogger(__name__)


class SearchProgress:
    """Counts documents and candidates, keeps the best perplexity so far, and draws both; a context manager."""

    def __init__(self, num_documents: int, *, console: Console) -> None:
        self.num_document_forwards = 0
        """Documents measured so far, failures included."""
        self.num_candidates = 0
        """Candidates measured so far."""
        self.best = math.nan
        """Lowest perplexity on the search documents so far."""
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
        self._task: TaskID = self._bar.add_task("formulas", total=num_documents)

    def __enter__(self) -> "SearchProgress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, num_documents: int) -> None:
        """Count documents."""
        self.num_document_forwards += num_documents
        self._bar.advance(self._task, num_documents)

    def candidate(self, perplexity: float) -> None:
        """Count a candidate and keep its perplexity if it is the best; NaN never is."""
        self.num_candidates += 1
        if not math.isnan(perplexity):
            self.best = perplexity if math.isnan(self.best) else min(self.best, perplexity)
        self._bar.update(self._task, description=f"best perplexity {self.best:.4f}")

    def generation(self, number: int) -> None:
        """Say in the log that a generation is complete."""
        logger.info(
            "generation %d: %d candidates, best search perplexity %.4f, %d document forwards",
            number,
            self.num_candidates,
            self.best,
            self.num_document_forwards,
        )
