"""What a device can do at most: a plain matrix product, and the memory that this process had in use on it."""

import platform
import re
import resource
import sys
from pathlib import Path
from time import perf_counter

import torch

from workers.scorer import WorkerSpeed

SIZES = {"cuda": (8192, 4096, 2048), "cpu": (1536, 1024, 512)}
"""Rows and columns of the matrices by kind of device, the largest that is quick enough; the last one warms up."""
SECONDS = 0.3
"""Time for the measurement."""
MIN_RUNS = 3
"""Products at least, of which the fastest counts."""

_ceilings: dict[tuple[str, torch.dtype], float] = {}


def worker_speed(device: torch.device, dtype: torch.dtype, batch_sizes: dict[int, int] | None = None) -> WorkerSpeed:
    """Return what a device can do; the memory that it took to find out is not among this process's peak.

    Args:
        device: Where the model computes.
        dtype: Its precision.
        batch_sizes: Documents per forward that were fastest, by length.
    """
    speed = WorkerSpeed(device_name(device), matmul_ceiling(device, dtype), batch_sizes or {})
    if device.type == "cuda":
        torch.cuda.empty_cache()
        for index in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(index)
    return speed


@torch.inference_mode()
def matmul_ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """Return the speed of a plain product of two large square matrices, measured once per kind of device.

    On a CPU with this process's number of threads, in half a second or so.

    Args:
        device: Where.
        dtype: Precision of the matrices.

    Returns:
        FLOP/s of the fastest of several; 2 operations per multiplication.
    """
    key = device_name(device), dtype
    if key not in _ceilings:
        _ceilings[key] = _measured_ceiling(device, dtype)
    return _ceilings[key]


def device_name(device: torch.device) -> str:
    """Return what a device is called: "NVIDIA H200", or the CPU's model with this process's number of threads.

    Args:
        device: A CUDA device or the CPU.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    num_threads = torch.get_num_threads()
    return f"{_cpu_name()}, {num_threads} thread{'s' * (num_threads != 1)}"


def peak_bytes(device: torch.device) -> int:
    """Return the most memory that this process had in use so far, where its model computes.

    Args:
        device: Where the model reads its input; it may go on to other devices of that kind.

    Returns:
        Bytes allocated on all CUDA devices together, else the process's resident set.
    """
    if device.type == "cuda":
        return sum(torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count()))
    status = Path("/proc/self/status")
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE) if status.is_file() else None
    if found:  # unlike ru_maxrss, which a process inherits from the one that started it
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _measured_ceiling(device: torch.device, dtype: torch.dtype) -> float:
    *larger, smallest = SIZES[device.type]
    _fastest(smallest, device, dtype, seconds=0.0)  # the first products load kernels
    size, seconds = smallest, _fastest(smallest, device, dtype, seconds=0.0)
    quick_enough = [size for size in larger if MIN_RUNS * seconds * (size / smallest) ** 3 <= SECONDS]
    if quick_enough:
        size = quick_enough[0]
    return 2.0 * size**3 / _fastest(size, device, dtype, seconds=SECONDS)


def _fastest(size: int, device: torch.device, dtype: torch.dtype, *, seconds: float) -> float:
    """Return the seconds that the fastest of several products takes."""
    # Not zeros: a GPU needs less power for them, and is faster
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    times: list[float] = []
    end = perf_counter() + seconds
    while len(times) < MIN_RUNS or perf_counter() < end:
        synchronize(device)
        start = perf_counter()
        torch.mm(left, right, out=out)
        synchronize(device)
        times.append(perf_counter() - start)
    return min(times)


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was told; the CPU always has.

    Args:
        device: A CUDA device or the CPU.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.is_file() else None
    return found[1].strip() if found else platform.processor() or platform.machine()
