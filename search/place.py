"""Where a run's results go: never into Ray's temporary copy of the working directory."""

import re
from datetime import datetime
from pathlib import Path

RUNS = "runs"
"""Folder of runs that were given no directory."""
_RAY_COPY = ("runtime_resources", "working_dir_files")


def check_storage(url: str | None, *, working_dir: Path) -> None:
    """Refuse a storage that would lie in Ray's temporary copy of the working directory.

    Raises:
        ValueError: `url` is a SQLite file with a relative path, and the process works in Ray's copy.
    """
    if url is not None and re.match(r"sqlite:///[^/]", url) and inside_ray_copy(working_dir):
        raise ValueError(
            f"--storage must not lie in Ray's temporary copy of the working directory, got {url}. "
            "Give SQLite an absolute path (four slashes)."
        )


def check_mirror(url: str, *, working_dir: Path) -> None:
    """Refuse a mirror that would lie in Ray's temporary copy of the working directory.

    Raises:
        ValueError: `url` is a relative path, and the process works in Ray's copy.
    """
    if "://" not in url and not Path(url).expanduser().is_absolute() and inside_ray_copy(working_dir):
        raise ValueError(
            f"--mirror must not lie in Ray's temporary copy of the working directory, got {url}. "
            "Give an absolute path or a URL."
        )


def inside_ray_copy(working_dir: Path) -> bool:
    """Return whether a process that works here was submitted to Ray with a copy of its user's folder."""
    return all(part in working_dir.parts for part in _RAY_COPY)


def run_directory_path(chosen: str | None, *, now: datetime, working_dir: Path, home: Path) -> Path:
    """Return the absolute folder for a run's results.

    A job that was submitted to Ray works in a copy of the user's folder that Ray deletes, so what is relative there
    is taken from `home / "ropewalk"` instead.

    Args:
        chosen: What the user asked for; None for runs/<date>-<time>.
        now: Start of the run.
        working_dir: The process's working directory.
        home: The user's home folder.

    Raises:
        ValueError: `chosen` lies inside Ray's copy.
    """
    submitted = inside_ray_copy(working_dir)
    root = home / "ropewalk" if submitted else working_dir
    path = root / (Path(chosen).expanduser() if chosen else Path(RUNS) / f"{now:%Y%m%d-%H%M%S}")
    if submitted and path.is_relative_to(working_dir):
        raise ValueError(
            f"results must not lie in Ray's temporary copy of the working directory, got {path}. "
            "Give a folder elsewhere with --run-dir."
        )
    return path
