"""How many threads torch computes with in this process: what Ray gave it, or what its container may use."""

import os
import sys
from pathlib import Path

import torch

CGROUPS = Path("/sys/fs/cgroup")
"""Where Linux shows the limits of groups of processes."""
MEMBERSHIP = Path("/proc/self/cgroup")
"""Where it says which of them this process is in."""


def usable_cpus() -> int:
    """Return the CPUs that this process can keep busy: those it may run on, within its container's quota.

    Returns:
        At least 1; a quota of 2.5 CPUs counts as 2.
    """
    # macOS binds no process to CPUs
    num_allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(num_allowed, cpu_quota(CGROUPS, MEMBERSHIP))))


def cpu_quota(cgroups: Path, membership: Path) -> float:
    """Return the CPUs' worth of time that a process gets in each period, by the tightest of its groups.

    Args:
        cgroups: Where the groups are mounted, of version 1 or 2.
        membership: File with a line "number:controllers:path" for each hierarchy that the process is in.

    Returns:
        CPUs, above 0, infinite where there is no quota or no group.

    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max) and scheduler/sched-bwc.html (cfs_quota_us).
    """
    quotas = [float("inf")]
    for line in _read(membership).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        for mount in [cgroups / "cpu", cgroups / controllers] if controllers else [cgroups, cgroups / "unified"]:
            group = mount / path.lstrip("/")
            # Its parents bind it too; in a container the path may be the host's, and the mount the group itself
            quotas += [_quota_of(folder) for folder in (group, *group.parents) if folder.is_relative_to(mount)]
    return min(quotas)


def assigned_cpus() -> float | None:
    """Return the CPUs that Ray set aside for this process.

    Returns:
        None outside a Ray actor; 0 for an actor that asked for none.
    """
    ray = sys.modules.get("ray")  # a worker has it; nobody else should wait for it
    if ray is None or not ray.is_initialized() or ray.get_runtime_context().get_actor_id() is None:
        return None
    return float(ray.get_runtime_context().get_assigned_resources().get("CPU", 0.0))


def set_threads(num_cpus: float | None) -> int:
    """Make torch compute with as many threads as this process has CPUs, so that its neighbours keep theirs.

    Ray writes the CPUs of an actor into OMP_NUM_THREADS where that is unset, which torch reads only if it comes later
    and its user has not set another. Threads that torch starts between operators stay as they are.

    Args:
        num_cpus: CPUs that the process was given; None for all that it can use, where torch's own choice, one thread
            per core, is only ever lowered.

    Returns:
        Threads from now on: `num_cpus` rounded down, at least 1, never more than OMP_NUM_THREADS.
    """
    num_threads = min(torch.get_num_threads(), usable_cpus()) if num_cpus is None else max(1, int(num_cpus))
    wished = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # a list is for nested regions
    if wished.isdecimal() and int(wished) > 0:
        num_threads = min(num_threads, int(wished))
    torch.set_num_threads(num_threads)
    return num_threads


def _quota_of(group: Path) -> float:
    """Return the CPUs of one group."""
    quota, _, period = _read(group / "cpu.max").partition(" ")
    if not quota:
        quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
    try:
        return float(quota) / float(period) if float(quota) > 0 else float("inf")
    except (ValueError, ZeroDivisionError):  # "max", or no such file
        return float("inf")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
