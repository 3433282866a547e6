"""Checkpoints: whole or not at all, pruned, taken up by their own run alone."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from workers.tuning.checkpoints import MARKER, Checkpoints

IDENTITY = {"training.num_steps": 10, "factors.values": (1.0, 4.0), "data": "a1"}


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints", IDENTITY)


@pytest.fixture
def write(checkpoints: Checkpoints) -> Callable[[int], Path]:
    """Writes the files of a checkpoint, as the Trainer does, but does not complete it."""

    def written(step: int) -> Path:
        path = checkpoints.path(step)
        (path / "shards").mkdir(parents=True)
        (path / "model.safetensors").write_bytes(os.urandom(1000))
        (path / "shards" / "0.distcp").write_bytes(os.urandom(1000))
        return path

    return written


def test_only_a_marked_checkpoint_counts(checkpoints: Checkpoints, write: Callable[[int], Path]) -> None:
    write(5)
    checkpoints.mark(5)
    write(10)
    found = checkpoints.starting_point(resume=True)
    assert found is not None
    assert (found.step, found.path.name) == (5, "checkpoint-5")


def test_the_newest_is_the_one_of_most_steps_not_of_the_last_name(
    checkpoints: Checkpoints, write: Callable[[int], Path]
) -> None:
    for step in (10, 9, 100):
        write(step)
        checkpoints.mark(step)
    assert [checkpoint.step for checkpoint in checkpoints.complete()] == [9, 10, 100]


def test_a_run_begins_where_there_is_no_checkpoint(checkpoints: Checkpoints) -> None:
    assert checkpoints.starting_point(resume=True) is None
    assert checkpoints.starting_point(resume=False) is None


def test_pruning_keeps_the_newest_and_removes_what_was_never_completed(
    checkpoints: Checkpoints, write: Callable[[int], Path]
) -> None:
    for step in (1, 2, 3, 4):
        write(step)
        if step != 3:
            checkpoints.mark(step)
    checkpoints.prune(2)
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["checkpoint-2", "checkpoint-4"]


def test_other_folders_are_left_alone(checkpoints: Checkpoints, write: Callable[[int], Path]) -> None:
    write(1)
    (checkpoints.folder / "checkpoint-mine").mkdir()
    (checkpoints.folder / "runs").mkdir()
    checkpoints.clear()
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["checkpoint-mine", "runs"]


def test_another_configuration_is_refused_with_the_keys_that_differ(
    checkpoints: Checkpoints, write: Callable[[int], Path]
) -> None:
    write(5)
    checkpoints.mark(5)
    changed = {"training.num_steps": 20, "factors.values": (1.0, 4.0), "data": "b2", "training.seed": 1}
    with pytest.raises(ValueError) as caught:
        Checkpoints(checkpoints.folder, changed).starting_point(resume=True)
    assert str(caught.value) == (
        "a run that is taken up must have the settings it began with, got others for data (a1 before, b2 now), "
        "training.num_steps (10 before, 20 now), training.seed (None before, 1 now). Give the old ones, or start in "
        "another folder."
    )


def test_a_new_run_does_not_begin_among_checkpoints(checkpoints: Checkpoints, write: Callable[[int], Path]) -> None:
    write(5)
    checkpoints.mark(5)
    with pytest.raises(ValueError, match=r"a new run must begin in a folder without checkpoints, got .* with some"):
        checkpoints.starting_point(resume=False)


def test_a_damaged_marker_is_named(checkpoints: Checkpoints, write: Callable[[int], Path]) -> None:
    write(5)
    checkpoints.mark(5)
    (checkpoints.path(5) / MARKER).write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"complete\.json must be a checkpoint's marker, got a damaged file"):
        checkpoints.starting_point(resume=True)
