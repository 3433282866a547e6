"""Which precision a device gets, and what the log says where one is slow."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from workers import precision
from workers.precision import (
    BFLOAT16_INSTRUCTIONS,
    DTYPES,
    choose_precision,
    cpu_instructions,
    missing_bfloat16,
    warn_if_slow,
)

CPU = torch.device("cpu")
SAPPHIRE_RAPIDS = "flags\t\t: fpu vme avx512f avx512_bf16 avx512_fp16 amx_bf16 amx_tile amx_int8"
ZEN_4 = "flags\t\t: fpu avx2 avx512f avx512_bf16 avx512_vnni"
SKYLAKE = "flags\t\t: fpu avx2 avx512f avx512bw vmx"
GRAVITON_3 = "Features\t: fp asimd sve svei8mm svebf16 i8mm bf16 dgh rng"
GRAVITON_2 = "Features\t: fp asimd evtstrm aes atomics fphp asimddp ssbs"


@pytest.fixture
def on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes this machine's processor another one, as far as Linux tells."""

    def become(flags: str) -> None:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nmodel name\t: One\n{flags}\n\nprocessor\t: 1\n{flags}\n")
        monkeypatch.setattr(precision, "CPU_INFO", tmp_path / "cpuinfo")

    return become


@pytest.mark.parametrize(
    ("flags", "chosen"),
    [
        (SAPPHIRE_RAPIDS, "bfloat16"),
        (ZEN_4, "bfloat16"),
        (GRAVITON_3, "bfloat16"),
        (SKYLAKE, "float32"),
        (GRAVITON_2, "float32"),
        ("nothing: of the kind", "float32"),
    ],
)
def test_a_cpu_computes_in_bfloat16_where_it_multiplies_it_itself(
    flags: str, chosen: str, on: Callable[[str], None]
) -> None:
    on(flags)
    found = choose_precision("cpu")
    assert found.precision == chosen
    assert found.reason == (
        "the CPU multiplies it itself" if chosen == "bfloat16" else "the CPU has none of amx_bf16, avx512_bf16, bf16"
    )


def test_this_machines_instructions_are_those_that_linux_names() -> None:
    if not precision.CPU_INFO.exists():
        pytest.skip("this system has no /proc/cpuinfo")
    first = next(line for line in precision.CPU_INFO.read_text().splitlines() if line.startswith(("flags", "Feat")))
    expected = [name for name in BFLOAT16_INSTRUCTIONS if f" {name} " in f"{first} "]
    assert sorted(cpu_instructions(precision.CPU_INFO).intersection(BFLOAT16_INSTRUCTIONS)) == sorted(expected)
    assert bool(expected) is not bool(missing_bfloat16(CPU))


def test_a_system_without_that_file_is_taken_to_have_none(tmp_path: Path) -> None:
    assert cpu_instructions(tmp_path / "nowhere") == frozenset()


def test_auto_is_the_cpu_where_there_is_no_gpu(on: Callable[[str], None]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    on(SKYLAKE)
    assert choose_precision("auto").precision == "float32"


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_gpus_of_other_machines_are_taken_to_multiply_bfloat16(device: str, on: Callable[[str], None]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    on(SKYLAKE)
    precision_name, reason = choose_precision(device)
    assert precision_name == "bfloat16"
    assert reason == "the GPUs are on other machines, and are taken to multiply it themselves"


@pytest.mark.parametrize(
    ("flags", "dtype", "is_slow"),
    [
        (SKYLAKE, "bfloat16", True),
        (SKYLAKE, "float32", False),
        (ZEN_4, "bfloat16", False),
    ],
)
def test_bfloat16_without_the_instructions_is_warned_about(
    flags: str, dtype: str, is_slow: bool, on: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    on(flags)
    caplog.set_level(logging.WARNING, logger="workers.precision")
    warn_if_slow(DTYPES[dtype], CPU)
    warning = "bfloat16 is slow here: the CPU has none of amx_bf16, avx512_bf16, bf16; --dtype float32 computes faster"
    assert caplog.messages == ([warning] if is_slow else [])
