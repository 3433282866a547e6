"""The ways to score a document that the benchmark `scoring` compares, each in a process of its own.

Shapes: T tokens, V vocabulary.
"""

import gc
import logging
import math
import re
import resource
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import NamedTuple, Protocol
from unittest import mock

import torch
import transformers
from torch import Tensor
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel

from needles.document import NeedleDocument
from tests.benchmarks.scoring_models import (
    NUM_ANSWER_TOKENS,
    PROBE_LENGTHS,
    SHAPES,
    Job,
    baseline_model,
    free_memory,
    make_documents,
    random_loaded_model,
    tensors,
    unscaled,
)
from workers.flops import document_flops
from workers.model import load_model
from workers.scorer import failure_reason
from workers.scoring import NeedleScoring
from workers.threads import set_threads

CHOSEN = "ropewalk-chosen"
WAYS = ("ropewalk", "labels", "labels-no-cache", "labels-fp32", "published")
TURN_SECONDS = 1.0
"""A turn reads its documents again until so much time is spent, up to MOST_READINGS times."""
MOST_READINGS = 3


class Request(NamedTuple):
    """What a process is asked for."""

    length: int
    num_documents: int
    is_profile: bool = False


class Reading(NamedTuple):
    """What came of it."""

    seconds: tuple[float, ...] = ()
    """Wall time of all documents, once for each time that they were read."""
    losses: tuple[float, ...] = ()
    """Nats per answer token, one for each document."""
    peak_bytes: int = 0
    """Most memory in use above the weights."""
    weight_bytes: int = 0
    """Memory in use before: on a CPU the whole process's."""
    flops: float = math.nan
    """Floating point operations of one document, as this way computes it."""
    useful_flops: float = math.nan
    """Those that its score needs."""
    dtype: str = ""
    attention: str = ""
    profile: str = ""
    failure: str = ""
    left_bytes: int = 0
    """Device memory that was not given back afterwards."""


class FailedMeasurementError(Exception):
    """The scorer measured a document as failed; its own words are the reason."""


class Way(Protocol):
    """A loaded model and a way to score with it."""

    model: PreTrainedModel
    attention: str
    is_trimmed: bool

    def prepare(self, documents: Sequence[NeedleDocument]) -> None:
        """Do once what needs no clock."""

    def losses(self, documents: Sequence[NeedleDocument]) -> list[float]:
        """Return nats per answer token of each document."""


class Ropewalk:
    """This package's scorer, with factors that change nothing.

    All documents go through in one forward where they fit, else the scorer halves them and says so in its log;
    `ropewalk-chosen` takes as many as the scorer itself chooses.
    """

    def __init__(self, job: Job) -> None:
        if job.model in SHAPES:
            self._loaded = random_loaded_model(job)
        else:
            self._loaded = load_model(job.model, dtype=job.dtype, device=job.device, gguf_file=job.gguf_file)
        self.model, self.attention = self._loaded.model, self._loaded.attention
        self.is_trimmed = self._loaded.is_trimmed
        self._factors = unscaled(self.model)
        self._chooses = job.way == CHOSEN

    def prepare(self, documents: Sequence[NeedleDocument]) -> None:
        with nullcontext() if self._chooses else mock.patch("workers.scoring.fastest_batch_size", _most):
            self._scoring = NeedleScoring(self._loaded, documents)

    def losses(self, documents: Sequence[NeedleDocument]) -> list[float]:
        ids = [document.id for document in documents]
        chosen = self._scoring.speed.batch_sizes.get(documents[0].length, 1)
        size = chosen if self._chooses else len(ids)
        batches = [ids[start : start + size] for start in range(0, len(ids), size)]
        measured = [found for batch in batches for found in self._scoring.score(self._factors, batch)]
        for measurement in measured:
            if measurement.failure:
                raise FailedMeasurementError(measurement.failure)
        return [measurement.sum_nll / measurement.num_tokens for measurement in measured]


def _most(_: object, *, most: int) -> int:
    return most


class Labels:
    """What anyone would write first: `model(input_ids, labels=labels)`, one document at a time."""

    is_trimmed = False

    def __init__(self, job: Job, dtype: torch.dtype) -> None:
        self.model, self.attention = baseline_model(job, dtype)
        self._options = {"use_cache": False} if job.way == "labels-no-cache" else {}

    def prepare(self, documents: Sequence[NeedleDocument]) -> None:
        pass

    @torch.inference_mode()
    def losses(self, documents: Sequence[NeedleDocument]) -> list[float]:
        return [self.loss(*tensors(document, self.model.device)).item() for document in documents]

    def loss(self, input_ids_1T: Tensor, labels_1T: Tensor) -> Tensor:
        loss: Tensor = self.model(input_ids=input_ids_1T, labels=labels_1T, **self._options).loss
        return loss


class Published(Labels):
    """The published evaluator's way: logits of all positions in float32, and a cache emptied after each document."""

    def loss(self, input_ids_1T: Tensor, labels_1T: Tensor) -> Tensor:
        logits_1TV = self.model(input_ids=input_ids_1T, use_cache=False).logits.float()
        loss = functional.cross_entropy(logits_1TV[:, :-1].flatten(0, 1), labels_1T[:, 1:].flatten())
        del logits_1TV
        gc.collect()
        torch.cuda.empty_cache()  # nothing on a CPU
        return loss


def load_way(job: Job) -> Way:
    """Return a way with its own model."""
    if job.way in ("ropewalk", CHOSEN):
        return Ropewalk(job)
    if job.way == "published":
        return Published(job, published_dtype(job.device))
    return Labels(job, torch.float32 if job.way == "labels-fp32" else getattr(torch, job.dtype))


def published_dtype(device: str) -> torch.dtype:
    """Return float16, or float32 on a processor for which torch has no matmul kernel in float16."""
    return torch.float16 if device != "cpu" or _multiplies_half() else torch.float32


def _multiplies_half() -> bool:
    def best(dtype: torch.dtype) -> float:
        square = torch.ones(256, 256, dtype=dtype)
        times = []
        for _ in range(5):
            start = perf_counter()
            square @ square
            times.append(perf_counter() - start)
        return min(times)

    return best(torch.float16) < 2 * best(torch.float32)


def serve(connection: Connection, job: Job) -> None:
    """Answer requests until None comes."""
    set_threads(None)
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.basicConfig(level=logging.INFO, format=f"{job.model} {job.way}: %(message)s")
    scorer: Scorer | None = None
    while (request := connection.recv()) is not None:
        try:
            scorer = scorer or Scorer(job)
            reading = scorer.reading(request)
        except FailedMeasurementError as error:
            reading = Reading(failure=str(error))
        except Exception as error:  # noqa: BLE001 - a way that fails is a row of the table
            reading = Reading(failure=failure_reason(error))
        if job.device != "cpu":
            scorer = None  # the next way shall have the whole device
            free_memory()
            reading = reading._replace(left_bytes=torch.cuda.memory_allocated())
        connection.send(reading)


class Scorer:
    """A loaded way under the clock."""

    def __init__(self, job: Job) -> None:
        self._device = job.device
        self._is_cpu = job.device == "cpu"
        self._way = load_way(job)
        free_memory()
        self._weight_bytes = _resident_bytes("VmRSS") if self._is_cpu else torch.cuda.memory_allocated()

    def reading(self, request: Request) -> Reading:
        """Return what the request asks for; raises what the way raises."""
        config = self._way.model.config.get_text_config()
        probe = make_documents(config.vocab_size, min(request.length, PROBE_LENGTHS[self._device]), 1)
        documents = make_documents(config.vocab_size, request.length, request.num_documents)
        self._way.prepare(list({document.id: document for document in probe + documents}.values()))
        self._way.losses(probe)
        if request.is_profile:
            return Reading(profile=profile_text(self._way, documents))
        self._reset_peak()
        seconds: list[float] = []
        losses: list[float] = []
        while len(seconds) < MOST_READINGS and sum(seconds) < TURN_SECONDS:
            start = self._now()
            losses = self._way.losses(documents)
            seconds.append(self._now() - start)
        useful, full = (
            document_flops(self._way.model, num_tokens=request.length, num_kept=num_kept)
            for num_kept in (NUM_ANSWER_TOKENS + 1, request.length)
        )
        return Reading(
            seconds=tuple(seconds),
            losses=tuple(losses),
            peak_bytes=self._peak_bytes() - self._weight_bytes,
            weight_bytes=self._weight_bytes,
            flops=useful if self._way.is_trimmed else full,
            useful_flops=useful,
            dtype=str(self._way.model.dtype).removeprefix("torch."),
            attention=self._way.attention,
        )

    def _now(self) -> float:
        if not self._is_cpu:
            torch.cuda.synchronize()
        return perf_counter()

    def _reset_peak(self) -> None:
        free_memory()
        if not self._is_cpu:
            torch.cuda.reset_peak_memory_stats()
            return
        # See proc(5); where that cannot be, the peak is the process's, which a longer document still raises
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def _peak_bytes(self) -> int:
        return _resident_bytes("VmHWM") if self._is_cpu else torch.cuda.max_memory_allocated()


def _resident_bytes(name: str) -> int:
    """Return what the process has or had resident; the most that it had where the system says no more."""
    try:
        found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    except OSError:
        found = None
    return 1024 * (int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def profile_text(way: Way, documents: Sequence[NeedleDocument], num_lines: int = 20) -> str:
    """Return where one reading of the documents spends the device's time, most first."""
    on_device = torch.cuda.is_available() and way.model.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_device else [])
    start = perf_counter()
    with profile(activities=activities) as found:
        way.losses(documents)
        if on_device:
            torch.cuda.synchronize()
    wall = perf_counter() - start
    times: list[tuple[float, int, str]] = []
    for event in found.key_averages():
        is_kernel = event.device_type.name == "CUDA"
        if is_kernel == on_device:
            microseconds = event.self_device_time_total if on_device else event.self_cpu_time_total
            times.append((microseconds / 1e6, event.count, event.key))
    total = sum(seconds for seconds, _, _ in times) or math.nan
    lines = [f"{total:.3f} s of the device in {wall:.3f} s of wall time"]
    for seconds, count, key in sorted(times, reverse=True)[:num_lines]:
        lines.append(f"{seconds / total:6.1%} {seconds * 1e3:10.2f} ms {count:7d} x  {key[:90]}")
    return "\n".join(lines)
