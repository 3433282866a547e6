"""In which precision a model is computed: chosen once for a run, by the driver, and said with its reason."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import torch

Precision = Literal["float32", "bfloat16"]
"""Precision of weights and activations; frequencies and losses are float32 in both."""

DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}

CPU_INFO = Path("/proc/cpuinfo")
"""Where Linux names the instructions of the processor."""
BFLOAT16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16")
"""Those that multiply bfloat16, as Linux calls them: two of x86, one of ARM."""

logger = logging.getLogger(__name__)


class Choice(NamedTuple):
    """A precision."""

    precision: Precision
    """Its name."""
    reason: str
    """Why it was chosen."""


def choose_precision(device: str) -> Choice:
    """Return the fastest precision that is good enough for scoring.

    Args:
        device: auto (CUDA if there is one), cpu, cuda, cuda:1, ...

    Returns:
        bfloat16 where this machine's device multiplies it itself, or is a GPU that is on other machines only; else
        float32.
    """
    has_gpu = torch.cuda.is_available()
    if device.startswith("cuda") and not has_gpu:
        return Choice("bfloat16", "the GPUs are on other machines, and are taken to multiply it themselves")
    on_gpu = has_gpu and device != "cpu"
    if lacking := missing_bfloat16(torch.device("cuda" if on_gpu else "cpu")):
        return Choice("float32", lacking)
    return Choice("bfloat16", f"the {'GPU' if on_gpu else 'CPU'} multiplies it itself")


def warn_if_slow(dtype: torch.dtype, device: torch.device) -> None:
    """Say in the log where a precision works but is slow.

    Args:
        dtype: Precision of a model.
        device: Where it is.
    """
    if dtype == torch.bfloat16 and (lacking := missing_bfloat16(device)):
        logger.warning("bfloat16 is slow here: %s; --dtype float32 computes faster", lacking)


def missing_bfloat16(device: torch.device) -> str:
    """Return what a device lacks to multiply bfloat16 itself; it works without, but slowly.

    Args:
        device: The CPU or a CUDA device.

    Returns:
        A clause for the log; empty where nothing is missing.
    """
    if device.type != "cuda":
        known = cpu_instructions(CPU_INFO)
        lacks = f"the CPU has none of {', '.join(BFLOAT16_INSTRUCTIONS)}"
        return "" if known.intersection(BFLOAT16_INSTRUCTIONS) else lacks
    with torch.cuda.device(device):
        has_it = torch.cuda.is_bf16_supported(including_emulation=False)
    return "" if has_it else f"{torch.cuda.get_device_name(device)} has no bfloat16"


def cpu_instructions(cpu_info: Path) -> frozenset[str]:
    """Return the names of the instructions that a processor has.

    Args:
        cpu_info: /proc/cpuinfo, or a file like it.

    Returns:
        Names from the first of its lines "flags" (x86) or "Features" (ARM); empty where there is no such file.
    """
    try:
        lines = cpu_info.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    found = (line.partition(":")[2] for line in lines if line.partition(":")[0].strip() in ("flags", "Features"))
    return frozenset(next(found, "").split())
