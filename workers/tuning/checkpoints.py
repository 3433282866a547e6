"""Checkpoints that are there whole or not at all: a folder counts from the moment that its marker is in it."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from results.atomic_file import write_text

PREFIX = "checkpoint-"
"""What transformers' Trainer calls its checkpoints, before the step."""
MARKER = "complete.json"
"""Written last; what it lies beside is whole and on the disk."""


@dataclass(frozen=True, kw_only=True, order=True)
class Checkpoint:
    """A complete checkpoint."""

    step: int
    """Optimizer steps taken."""
    path: Path
    """Its folder."""


class Checkpoints:
    """The checkpoints of one training run; for one writer.

    Args:
        folder: Where they lie; made when the first is written.
        identity: What must not differ between the run that wrote one and the run that takes it up, as JSON has it.
    """

    def __init__(self, folder: Path, identity: Mapping[str, object]) -> None:
        self.folder = folder
        """Where they lie."""
        self._identity = json.loads(json.dumps(dict(identity)))

    def complete(self) -> list[Checkpoint]:
        """Return the complete ones, oldest first."""
        return sorted(
            Checkpoint(step=int(path.name.removeprefix(PREFIX)), path=path)
            for path in self._folders()
            if (path / MARKER).is_file()
        )

    def starting_point(self, *, resume: bool) -> Checkpoint | None:
        """Return the newest complete one, from which a run goes on; None where it begins.

        Args:
            resume: Whether to go on; there must be none otherwise.

        Raises:
            ValueError: There is one and `resume` is False, or it is another run's; the keys that differ are listed.
            OSError: It cannot be read.
        """
        found = self.complete()
        if found and not resume:
            raise ValueError(
                f"a new run must begin in a folder without checkpoints, got {self.folder} with some. Resume that run, "
                "or choose another folder."
            )
        if not found:
            return None
        self._check(found[-1])
        return found[-1]

    def mark(self, step: int) -> None:
        """Bring a checkpoint that was written to the disk, and count it from now on.

        Args:
            step: Its step.

        Raises:
            OSError: It could not be brought to the disk; it does not count then.
        """
        path = self.path(step)
        for file in sorted(path.rglob("*")):
            if file.is_file():
                _flush(file)
        write_text(path / MARKER, json.dumps({"step": step, "identity": self._identity}, indent=2) + "\n")
        _flush(path)
        _flush(self.folder)

    def prune(self, num_kept: int) -> None:
        """Remove all complete checkpoints but the newest, and what was never completed.

        Args:
            num_kept: Complete ones that stay; at least 1.
        """
        for checkpoint in self.complete()[:-num_kept]:
            # Without its marker first, so that a kill on the way leaves no half of a checkpoint that counts
            (checkpoint.path / MARKER).unlink()
        self.clear()

    def clear(self) -> None:
        """Remove what was never completed: the checkpoint that a killed process or a full disk left."""
        for path in self._folders():
            if not (path / MARKER).is_file():
                shutil.rmtree(path)

    def path(self, step: int) -> Path:
        """Return where the checkpoint of a step lies.

        Args:
            step: Optimizer steps taken.
        """
        return self.folder / f"{PREFIX}{step}"

    def _folders(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return [path for path in self.folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdecimal()]

    def _check(self, checkpoint: Checkpoint) -> None:
        path = checkpoint.path / MARKER
        try:
            before = json.loads(path.read_text(encoding="utf-8"))["identity"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} must be a checkpoint's marker, got a damaged file. Remove its folder.") from error
        names = sorted(before.keys() | self._identity.keys())
        differing = [name for name in names if before.get(name) != self._identity.get(name)]
        if differing:
            shown = ", ".join(
                f"{name} ({before.get(name)} before, {self._identity.get(name)} now)" for name in differing
            )
            raise ValueError(
                f"a run that is taken up must have the settings it began with, got others for {shown}. "
                "Give the old ones, or start in another folder."
            )


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
