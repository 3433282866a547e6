"""Where results go, under Ray and without it."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from search.place import check_mirror, check_storage, run_directory_path

NOW = datetime(2026, 3, 4, 15, 6, 7, tzinfo=UTC)
HOME = Path("/home/ada")
WORKING = HOME / "models"
RAY_COPY = Path("/tmp/ray/session_1/runtime_resources/working_dir_files/_ray_pkg_0123456789abcdef")


def place(chosen: str | None, working_dir: Path) -> Path:
    return run_directory_path(chosen, now=NOW, working_dir=working_dir, home=HOME)


def test_a_run_without_a_directory_is_named_by_its_start() -> None:
    assert place(None, WORKING) == WORKING / "runs" / "20260304-150607"


def test_a_chosen_directory_is_relative_to_the_working_directory() -> None:
    assert place("found/first", WORKING) == WORKING / "found" / "first"


def test_an_absolute_directory_is_taken_as_it_is() -> None:
    assert place("/data/run", WORKING) == Path("/data/run")
    assert place("/data/run", RAY_COPY) == Path("/data/run")


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(HOME))
    assert place("~/run", WORKING) == HOME / "run"


@pytest.mark.parametrize("working_dir", [RAY_COPY, RAY_COPY / "inner"])
def test_under_ray_relative_directories_lie_in_the_home_folder(working_dir: Path) -> None:
    assert place(None, working_dir) == HOME / "ropewalk" / "runs" / "20260304-150607"
    assert place("mine", working_dir) == HOME / "ropewalk" / "mine"


def test_a_directory_inside_rays_copy_is_refused() -> None:
    message = (
        r"^results must not lie in Ray's temporary copy of the working directory, got .*/mine\. Give a folder else"
    )
    with pytest.raises(ValueError, match=message):
        place(str(RAY_COPY / "mine"), RAY_COPY)


@pytest.mark.parametrize("url", [None, "sqlite:////home/me/studies.db", "postgresql://host/studies"])
def test_a_storage_that_outlives_the_job_is_accepted(url: str | None) -> None:
    check_storage(url, working_dir=Path("/tmp/ray/session/runtime_resources/working_dir_files/_ray_pkg_1"))


def test_a_relative_sqlite_file_is_refused_in_ray_s_copy_and_accepted_elsewhere() -> None:
    check_storage("sqlite:///studies.db", working_dir=Path("/home/me"))
    message = r"^--storage must not lie in Ray's temporary copy of the working directory, got sqlite:///studies\.db\."
    with pytest.raises(ValueError, match=message):
        check_storage(
            "sqlite:///studies.db",
            working_dir=Path("/tmp/ray/session/runtime_resources/working_dir_files/_ray_pkg_1"),
        )


def test_a_mirror_inside_ray_s_copy_is_refused() -> None:
    copy = Path("/tmp/ray/session/runtime_resources/working_dir_files/_ray_pkg_1")
    with pytest.raises(ValueError, match=r"--mirror must not lie in Ray's temporary copy .* got copies/run"):
        check_mirror("copies/run", working_dir=copy)
    for url in ("s3://bucket/run", "/data/run", "~/run"):
        check_mirror(url, working_dir=copy)
    check_mirror("copies/run", working_dir=Path("/home/me"))
