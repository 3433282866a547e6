"""The study's journal file, and how it is mended after its writer was killed."""

import json
import logging
from pathlib import Path

JOURNAL = "study.journal"
"""Name of the journal file in the run directory."""
_LOCK_SUFFIX = ".lock"

logger = logging.getLogger(__name__)


def mend_journal(run_dir: Path) -> None:
    """Cut off a torn last record and take away the lock of a dead writer; both are said in the log.

    Only for the one driver of a run, before it opens the study. Optuna would wait 30 seconds for the lock, and write
    the next record onto the torn one.

    Args:
        run_dir: Folder of the run; it need not have a journal.

    Raises:
        OSError: The file cannot be written to.
    """
    journal = run_dir / JOURNAL
    lock = journal.with_name(journal.name + _LOCK_SUFFIX)
    if lock.is_symlink() or lock.exists():
        lock.unlink()
        logger.warning("%s was left by a driver that was killed; it is removed", lock)
    if not journal.is_file():
        return
    content = journal.read_bytes()
    whole = _whole_records(content)
    if whole < len(content):
        with journal.open("r+b") as file:
            file.truncate(whole)
        logger.warning(
            "%s ended in a torn record of %d bytes, which is cut off; everything before it is whole",
            journal,
            len(content) - whole,
        )


def _whole_records(content: bytes) -> int:
    """Return the number of bytes up to the end of the last whole record."""
    end = content.rfind(b"\n") + 1
    start = content.rfind(b"\n", 0, max(end - 1, 0)) + 1
    try:
        json.loads(content[start:end] or b"null")
    except ValueError:  # a block of zeros, as a machine that lost its power leaves it
        return start
    return end
