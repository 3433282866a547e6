"""Provenance: with what, where and when a result was made."""

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

DISTRIBUTIONS = ("ropewalk", "torch", "transformers", "tokenizers", "ray", "optuna", "numpy")
"""Distributions whose versions can change a result."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a reader needs to make a result again."""

    python: str
    """Version of Python."""
    versions: Mapping[str, str | None]
    """Version of each of `DISTRIBUTIONS`; None where it is not installed."""
    git_commit: str | None
    """Commit of Ropewalk's own checkout, with "-dirty" where files were changed; None where it runs from none."""
    platform: str
    """Operating system and processor architecture."""
    num_cpus: int
    """CPU cores that this process may use."""
    accelerators: tuple[str, ...]
    """Names of the accelerators used, one per device."""
    seed: int
    """The one seed."""
    command: str
    """Command line, quoted for a shell."""
    hashes: Mapping[str, str]
    """SHA-256 by name of what went in: configuration, corpus, model."""
    started: str
    """Start of the run, UTC, ISO 8601."""
    gathered: str
    """When this was written down, UTC, ISO 8601."""


def gather(
    *,
    seed: int,
    started: datetime,
    command: Sequence[str] | None = None,
    accelerators: Sequence[str] = (),
    hashes: Mapping[str, str] | None = None,
) -> Provenance:
    """Return the provenance of a run in this process; nothing heavy is imported for it.

    Args:
        seed: The one seed.
        started: Start of the run, with its time zone.
        command: Words of the command line; default: this process's.
        accelerators: Names of the accelerators used; only the workers know them.
        hashes: SHA-256 by name of what went in.

    Returns:
        The provenance; `dataclasses.asdict` of it is JSON.
    """
    return Provenance(
        python=platform.python_version(),
        versions={name: _version(name) for name in DISTRIBUTIONS},
        git_commit=_git_commit(Path(__file__).resolve().parents[1]),
        platform=platform.platform(),
        num_cpus=_num_cpus(),
        accelerators=tuple(accelerators),
        seed=seed,
        command=shlex.join(sys.argv if command is None else command),
        hashes=dict(hashes or {}),
        started=_timestamp(started),
        gathered=_timestamp(datetime.now(UTC)),
    )


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _num_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _git_commit(folder: Path) -> str | None:
    # Installed below somebody else's checkout, git would name their commit: only a checkout of our own has .git here.
    if not (folder / ".git").exists():
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _timestamp(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds")
