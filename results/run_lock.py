"""One driver per run directory: a lock that the kernel releases however its holder ends."""

import fcntl
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, sleep
from types import TracebackType

LOCK = "driver.lock"
"""Name of the lock in the run directory; the file stays, the lock on it does not."""
_PATIENCE_SECONDS = 1.0
"""How long a lock may be taken before it is refused: whoever asks whether it is taken holds it for a moment."""


class RunLock:
    """Holds a run directory for this process alone; a context manager.

    It is bound to the process, not to the file: after kill -9 the next driver gets it at once.

    Args:
        folder: Run directory; made with its parents where it is missing.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self._descriptor: int | None = None

    def __enter__(self) -> "RunLock":
        """Take the lock.

        Raises:
            ValueError: Another driver holds it, or the folder cannot be made, written to or locked.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self._folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
            self._take(self._descriptor)
        except OSError as error:
            self._close()
            raise ValueError(
                f"run directory {self._folder} must be a folder that can be written to and locked, "
                f"got: {error.strerror}. Choose another with --run-dir."
            ) from error
        except ValueError:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the lock."""
        self._close()

    def _take(self, descriptor: int) -> None:
        end = monotonic() + _PATIENCE_SECONDS
        while not _locked(descriptor, fcntl.LOCK_EX):
            if monotonic() >= end:
                raise ValueError(
                    f"run directory {self._folder} must have one driver, got a second while {_holder(descriptor)}. "
                    "Wait for it, or stop it."
                )
            sleep(0.05)
        since = datetime.now(UTC).isoformat(timespec="seconds")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{socket.gethostname()} {os.getpid()} {since}\n".encode(), 0)

    def _close(self) -> None:
        if self._descriptor is not None:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)  # a forked child may keep the file open
            os.close(self._descriptor)
            self._descriptor = None


def is_locked(folder: str | Path) -> bool:
    """Return whether a living driver works on a run; nothing is made or changed.

    Args:
        folder: Run directory; one that is missing is not locked.

    Raises:
        OSError: The lock may not be read.
    """
    try:
        descriptor = os.open(Path(folder) / LOCK, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        return not _locked(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _locked(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(descriptor: int) -> str:
    words = os.pread(descriptor, 1000, 0).decode(errors="replace").split()
    if len(words) != 3:
        return "another process works on it"
    host, pid, since = words
    return f"pid {pid} on host {host} works on it since {since}"
