"""What a run leaves for those who watch it: its status, a copy of its files elsewhere, a word on how to go on."""

import logging
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

from rich.console import Console

from results.mirror import Mirror
from results.run_directory import RunDirectory
from results.status import RunStatus, read_status, write_status
from results.urls import without_password
from search.config import SearchConfig, has_password
from search.progress import SearchProgress

ALGORITHM_NAMES = {
    "longrope2": "the evolution of LongRoPE2",
    "cmaes": "CMA-ES",
    "gradient": "descent along the gradient",
}
SHORT_NOTE = "* Second value: perplexity at the original length over the unscaled model's there.\n"
MIRROR_SECONDS = 60.0
"""Seconds between two copies of what is new."""

logger = logging.getLogger(__name__)


class Reporter:
    """Writes a run's status into its directory and copies the directory's files elsewhere."""

    def __init__(self, run: RunDirectory, mirror: Mirror | None) -> None:
        self._run = run
        self._mirror = mirror
        self._last_copy = monotonic()

    def publish(self, status: RunStatus) -> None:
        """Write the status, and copy what is new if it is time to; what fails is said and tried again."""
        try:
            write_status(self._run.path, status)
        except OSError as error:  # a full disk may have room again before the next measurement needs it
            logger.warning("the status could not be written: %s", error)
        if self._mirror is not None and monotonic() - self._last_copy >= MIRROR_SECONDS:
            self._last_copy = monotonic()
            try:
                self._mirror.sync(self._run.path)
            except OSError as error:
                logger.warning("what is new could not be copied and will be tried again: %s", error)

    def close(self, status: RunStatus) -> None:
        """Write the last status and copy all that is new.

        Raises:
            OSError: The run directory cannot be written to, or the copy fails.
        """
        write_status(self._run.path, status)
        if self._mirror is not None:
            self._mirror.sync(self._run.path)


@contextmanager
def reported(reporter: Reporter, progress: SearchProgress, *, console: Console, resume: str) -> Iterator[None]:
    """Leave a true status and, where the run did not finish, the line `resume`; errors go on to the caller."""
    try:
        yield
    except KeyboardInterrupt:
        _leave(reporter, progress.status("stopped", "stopped by its user"), console, resume)
        raise
    except Exception as error:
        reason = without_password(" ".join(str(error).split())) or type(error).__name__
        _leave(reporter, progress.status("failed", reason), console, resume)
        raise
    reporter.close(progress.status("finished"))


def _leave(reporter: Reporter, status: RunStatus, console: Console, resume: str) -> None:
    console.print(resume, highlight=False, soft_wrap=True)
    try:
        reporter.close(status)
    except OSError as error:  # a full disk ended the run; its own error is the one to be seen
        logger.warning("the status could not be written: %s", error)


def how_to_resume(config: SearchConfig, path: Path) -> str:
    """Return the line that says how a run that did not finish is taken up."""
    urls = {"--storage": config.storage, "--mirror": config.mirror}
    again = [f"{flag} {without_password(url)}" for flag, url in urls.items() if url is not None and has_password(url)]
    return " ".join([f"resume with: ropewalk search --resume --run-dir {shlex.quote(str(path))}", *again])


def seconds_before(path: Path) -> float:
    """Return the seconds that the run in a folder has taken so far; 0 where it left no status."""
    try:
        return read_status(path).seconds
    except ValueError:
        return 0.0


def study_note(config: SearchConfig, original_length: int, path: Path) -> str:
    """Return what a reader of the dashboard is told of a study, in Markdown."""
    algorithm = ALGORITHM_NAMES.get(config.algorithm, f"the sampler {config.algorithm}")
    return (
        f"**RoPE rescale factors for {Path(config.model).name}**, from {original_length} to {config.target_length} "
        f"tokens, by {algorithm}, {config.schedule} schedule, seed {config.seed}.\n\n"
        f"* Value: perplexity of the needle's answer on {config.num_per_candidate} search documents "
        f"({config.num_formula_documents} for formulas and finalists); lower is better."
        f"{' They are others in every generation.' * (config.num_fresh_documents > 0)} Validation documents choose "
        "among the finalists, held-out ones tell how good the winner is; both are in the run's `summary.json`.\n"
        f"{SHORT_NOTE * (len(config.objective_names) > 1)}"
        "* Pruned: dropped after a few documents on which it was clearly worse than another; its value is an "
        "estimate.\n"
        "* `lambda_00` .. : rescale factors, fast pairs first. Formulas come first and are trials of the same study.\n"
        "* `name`, `operator`, `parents`: what a trial is and the trials it was bred from; `perplexity_by_depth`: "
        "by the needle's place in the document.\n"
        f"* Run directory: `{path}`\n"
    )
