"""Files that are there whole or not at all."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to; it takes the place of `path` at the end, in one step.

    What was written is on the disk before it takes the place, so that a loss of power leaves the old file or the new
    one. An error on the way leaves `path` as it was and nothing beside it. For one writer at a time.

    Args:
        path: File to write or replace; its folder exists.

    Yields:
        Path of the temporary file; hidden, in the same folder.

    Raises:
        OSError: The folder is missing or not writable, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _flush_to_disk(temporary, os.O_RDWR)
        temporary.replace(path)
        _flush_to_disk(path.parent, os.O_RDONLY)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all; line breaks stay as they are.

    Args:
        path: File to write or replace; its folder exists.
        text: What it will hold.

    Raises:
        OSError: The folder is missing or not writable, or the disk is full.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def is_leftover(path: Path) -> bool:
    """Return whether a file's name is that of a temporary one, which a killed process leaves behind."""
    return re.fullmatch(r"\..+\.\d+\.tmp", path.name) is not None


def _flush_to_disk(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems know no fsync, of folders above all, and write in order without.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
    finally:
        os.close(descriptor)
