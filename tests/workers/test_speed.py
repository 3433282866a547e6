"""What a device can do: its name, its matmul ceiling, and the memory that this process had in use."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import psutil
import pytest
import torch

from needles.document import NeedleDocument
from results.measurement import Measurement
from rope.factors import RescaleFactors
from workers import speed
from workers.local import LocalScorer
from workers.pool import RayPool
from workers.scorer import WorkerSpeed
from workers.speed import device_name, matmul_ceiling, peak_bytes, worker_speed

CPU = torch.device("cpu")
FAST = WorkerSpeed("a device", 1.5e12, {4096: 8})
ROOT = Path(__file__).parents[2]


class SpeakingScoring:
    """A scoring without a model that says its speed."""

    def __init__(self, documents: Sequence[NeedleDocument]) -> None:
        self.speed = FAST

    def score(self, candidate: RescaleFactors, document_ids: Sequence[str]) -> list[Measurement]:
        return []


class SilentScoring:
    """One that does not."""

    def score(self, candidate: RescaleFactors, document_ids: Sequence[str]) -> list[Measurement]:
        return []


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """No ceiling is known, before and after."""
    monkeypatch.setattr(speed, "_ceilings", {})


def matmul_seconds(size: int, num_runs: int) -> float:
    left, right = torch.randn(2, size, size)
    times = []
    for _ in range(num_runs):
        start = perf_counter()
        left @ right
        times.append(perf_counter() - start)
    return min(times)


def test_the_ceiling_is_what_a_matmul_that_is_timed_by_hand_does(forgotten: None) -> None:
    ceiling = matmul_ceiling(CPU, torch.float32)
    by_hand = 2 * 1024**3 / matmul_seconds(1024, 5)
    assert 0.4 < ceiling / by_hand < 2.5  # other programs run on this machine too


def test_the_ceiling_is_measured_once_for_each_precision_and_number_of_threads(forgotten: None) -> None:
    first = matmul_ceiling(CPU, torch.float32)
    assert matmul_ceiling(CPU, torch.float32) == first  # to the last bit: it is not measured again
    assert len(speed._ceilings) == 1
    matmul_ceiling(CPU, torch.bfloat16)
    assert {dtype for _, dtype in speed._ceilings} == {torch.float32, torch.bfloat16}


def test_a_worker_says_its_device_and_what_it_can_do() -> None:
    found = worker_speed(CPU, torch.float32, {128: 4})
    assert found == WorkerSpeed(device_name(CPU), matmul_ceiling(CPU, torch.float32), {128: 4})
    assert worker_speed(CPU, torch.float32).batch_sizes == {}


def test_a_cpu_is_named_with_its_threads() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert device_name(CPU).endswith(", 1 thread")
        torch.set_num_threads(2)
        assert device_name(CPU).endswith(", 2 threads")
    finally:
        torch.set_num_threads(before)
    assert len(device_name(CPU)) > len(", 2 threads")


def test_the_peak_is_at_least_what_is_in_use_and_grows_with_what_is_touched() -> None:
    before = peak_bytes(CPU)
    assert before >= psutil.Process().memory_info().rss * 0.99  # the kernel counts pages by the batch
    in_use = psutil.Process().memory_info().rss
    block = torch.ones(before - in_use + 2**28, dtype=torch.uint8)
    assert peak_bytes(CPU) >= before + 2**27
    del block
    assert peak_bytes(CPU) >= before + 2**27


def test_a_peak_is_not_inherited_from_the_process_that_starts_another() -> None:
    program = (
        "import subprocess, sys; block = b'x' * 2**30; ask = 'import torch; from workers.speed import peak_bytes; "
        "print(peak_bytes(torch.device(\"cpu\")))'; subprocess.run([sys.executable, '-c', ask], check=True)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert int(found.stdout) < 2**30


def test_a_speed_reaches_the_driver_from_this_process_and_from_ray(
    ray_cluster: None, documents: list[NeedleDocument]
) -> None:
    assert LocalScorer(SpeakingScoring(documents), documents).speeds == (FAST,)
    pool = RayPool(SpeakingScoring, documents, num_workers=1, cpus_per_worker=1)
    try:
        assert pool.speeds == (FAST,)
    finally:
        pool.close()
    assert not pool.speeds


def test_a_scoring_that_does_not_say_its_speed_is_fine(documents: list[NeedleDocument]) -> None:
    assert LocalScorer(SilentScoring(), documents).speeds == ()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_on_a_gpu_the_peak_is_what_was_allocated_and_not_what_the_ceiling_needed() -> None:
    device = torch.device("cuda")
    found = worker_speed(device, torch.bfloat16)
    assert found.device == torch.cuda.get_device_name(device)
    assert found.ceiling > 2 * 2048**3 / 1.0
    before = peak_bytes(device)
    block = torch.empty(2**26, dtype=torch.uint8, device=device)
    assert peak_bytes(device) == before + 2**26
    del block
