"""Threads: what Ray gave, what the container allows, and never more than the user asked for."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from workers.threads import assigned_cpus, cpu_quota, set_threads, usable_cpus


@pytest.fixture(autouse=True)
def _same_threads_afterwards() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def group(tmp_path: Path) -> Callable[[dict[str, str], str], float]:
    """The quota of a process whose groups have these files, and whose membership file says this."""

    def quota(files: dict[str, str], membership: str) -> float:
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content + "\n")
        (tmp_path / "membership").write_text(membership + "\n")
        return cpu_quota(tmp_path, tmp_path / "membership")

    return quota


class Threads:
    """An actor that says what it was given and how many threads it computes with then."""

    def __init__(self, threads: int = 0) -> None:
        if threads:
            torch.set_num_threads(threads)

    def found(self) -> tuple[float | None, int, int]:
        given = assigned_cpus()
        return given, set_threads(given), torch.get_num_threads()


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(("cpus", "threads"), [(2.0, 2), (1.0, 1), (0.5, 1), (0.0, 1), (1.5, 1)])
def test_a_ray_actor_computes_with_the_threads_that_ray_gave_it(
    cpus: float, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a node whose user set nothing; these tests may run with OMP_NUM_THREADS=1 themselves
    assert in_actors(1, cpus, {"OMP_NUM_THREADS": "8"}) == [(cpus, threads, threads)]


@pytest.mark.usefixtures("ray_cluster")
def test_two_actors_of_one_cpu_have_one_thread_each_also_where_torch_began_with_more() -> None:
    assert in_actors(2, 1.0, {"OMP_NUM_THREADS": "2"}, 2) == [(1.0, 1, 1)] * 2


@pytest.mark.usefixtures("ray_cluster")
def test_a_users_own_number_of_threads_binds_an_actor_too() -> None:
    assert in_actors(1, 2.0, {"OMP_NUM_THREADS": "1"}) == [(2.0, 1, 1)]


@pytest.mark.usefixtures("ray_cluster")
def test_the_driver_is_no_worker() -> None:
    assert assigned_cpus() is None


def in_actors(number: int, cpus: float, variables: dict[str, str], *arguments: Any) -> list[tuple[Any, ...]]:
    """What actors of so many CPUs find, all alive at once."""
    make: Any = ray.remote(Threads).options(num_cpus=cpus, runtime_env={"env_vars": variables})
    actors = [make.remote(*arguments) for _ in range(number)]
    found: list[tuple[Any, ...]] = ray.get([actor.found.remote() for actor in actors])
    for actor in actors:
        ray.kill(actor)
    return found


def test_outside_ray_nothing_is_assigned() -> None:
    code = "import sys; from workers.threads import assigned_cpus; print(assigned_cpus(), 'ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["None", "False"]


def test_a_process_bound_to_one_cpu_has_one() -> None:
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("this system binds no process to CPUs")
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert usable_cpus() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert 1 <= usable_cpus() <= len(allowed)


def test_threads_are_at_least_one_and_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [set_threads(num_cpus) for num_cpus in (0.0, 0.25, 1.0, 2.9)] == [1, 1, 1, 2]
    assert torch.get_num_threads() == 2


def test_without_ray_torchs_own_choice_is_only_ever_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(1)
    assert set_threads(None) == 1
    torch.set_num_threads(1000)
    assert set_threads(None) == usable_cpus()


@pytest.mark.parametrize(("wished", "threads"), [("2", 2), ("1", 1), ("2,4", 2), ("", 3), ("all", 3), ("0", 3)])
def test_omp_num_threads_is_never_exceeded(wished: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", wished)
    assert set_threads(3.0) == threads


def test_a_quota_of_version_2_is_read_and_its_parents_bind_too(group: Callable[..., float]) -> None:
    files = {"cpu.max": "max 100000", "pods/cpu.max": "150000 100000", "pods/one/cpu.max": "400000 100000"}
    assert group(files, "0::/pods/one") == 1.5
    assert group(files, "0::/") == float("inf")


def test_a_quota_of_version_1_is_read(group: Callable[..., float]) -> None:
    files = {"cpu/docker/cpu.cfs_quota_us": "250000", "cpu/docker/cpu.cfs_period_us": "100000"}
    assert group(files, "4:memory:/docker\n3:cpu,cpuacct:/docker\n2:cpuset:/docker") == 2.5


def test_in_a_container_the_mount_is_its_group_whatever_path_the_host_knows(group: Callable[..., float]) -> None:
    files = {"cpu,cpuacct/cpu.cfs_quota_us": "50000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}
    assert group(files, "1:cpu,cpuacct:/docker/0cff3268") == 0.5


@pytest.mark.parametrize("files", [{}, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}])
def test_no_group_and_no_quota_are_no_limit(files: dict[str, str], group: Callable[..., float]) -> None:
    assert group(files, "1:cpu:/\n0::/") == float("inf")
    assert cpu_quota(Path("/nowhere"), Path("/nowhere/cgroup")) == float("inf")
