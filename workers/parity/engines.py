"""The engines that can be verified: their packages, how they are started, and why they are known to differ."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from rope.factors import RescaleFactors
from workers.parity.comparison import Reasons

_UNKNOWN = Reasons()


class Setting(NamedTuple):
    """How an engine is started, and what it then reads."""

    label: str
    """What its user types; empty where nothing decides."""
    server_length: int
    """Longest input that it is started for, tokens."""
    num_tokens: tuple[int, ...]
    """Lengths of the inputs, in their order."""


Settings = Callable[[RescaleFactors, int], list[Setting]]
"""From the factors and the max_position_embeddings that were exported."""


@dataclass(frozen=True, kw_only=True)
class ParityEngine:
    """How one engine is asked for its rotation."""

    package: str
    """What is imported."""
    distribution: str
    """What pip calls it."""
    module: str = ""
    """Module here whose `rotate` asks it; empty where there is none."""
    settings: Settings
    """How it is started."""
    imports: tuple[str, ...] = ()
    """Packages that its own code imports, to be found where it was found."""
    beside: tuple[str, ...] = ()
    """Packages that it is tried with where they lie unzipped and the installed ones do not do."""
    architecture: str = "llama"
    """model_type of the configuration that is made up where no model is given."""
    reasons: Reasons = _UNKNOWN
    """Why it differs where it is known to."""
    runs_here: bool = False
    """Whether the installed package is asked in this process, which imports it anyway."""
    refusal: str = ""
    """Why it cannot be verified here, whatever is installed."""


def _one(factors: RescaleFactors, exported_length: int) -> list[Setting]:
    """Return the one way to start; the longest input first, so that what stays behind from it would show."""
    return [Setting("", exported_length, _lengths(factors)[::-1])]


def _tables(factors: RescaleFactors, exported_length: int) -> list[Setting]:
    """Return the one way, with a word that the choice between the tables is a node of a graph, and was not run."""
    return [setting._replace(label="tables; choice not run") for setting in _one(factors, exported_length)]


def _started_with(option: str) -> Settings:
    def settings(factors: RescaleFactors, exported_length: int) -> list[Setting]:
        original = factors.original_length
        long = Setting(f"{option} {exported_length}", exported_length, _lengths(factors))
        return [long, Setting(f"{option} {original}", original, (original,))][: 1 + (exported_length > original)]

    return settings


def _lengths(factors: RescaleFactors) -> tuple[int, ...]:
    """Return the lengths of the inputs: at the border, one token beyond it, and the whole target window."""
    original, target = factors.original_length, factors.target_length
    return tuple(sorted({original, min(original + 1, target), target}))


_PARITY = "workers.parity."
_AT_START = "chosen once, by the length that the engine is started with"
_ONE_TEMPERATURE = "one temperature for both windows"

PARITY_ENGINES: Mapping[str, ParityEngine] = {
    "transformers": ParityEngine(
        package="transformers",
        distribution="transformers",
        module=_PARITY + "transformers_rotation",
        settings=_one,
        imports=("transformers",),
        beside=("huggingface_hub", "tokenizers"),  # transformers 4 and 5 need different ones
        runs_here=True,
        reasons=Reasons(temperature=_ONE_TEMPERATURE),
    ),
    "vllm": ParityEngine(
        package="vllm",
        distribution="vllm",
        module=_PARITY + "vllm_rotation",
        settings=_started_with("--max-model-len"),
        reasons=Reasons(factors=_AT_START, temperature=_AT_START),
    ),
    "sglang": ParityEngine(
        package="sglang",
        distribution="sglang",
        module=_PARITY + "sglang_rotation",
        settings=_one,
        reasons=Reasons(
            factors="its border is a token late",
            temperature="its border is a token late",
            positions="it reads the first row of the long factors' table",
        ),
    ),
    "mlx": ParityEngine(
        package="mlx_lm",
        distribution="mlx-lm",
        module=_PARITY + "mlx_rotation",
        settings=_one,
        imports=("mlx_lm", "mlx"),
        reasons=Reasons(factors="always long", temperature="always that of the long factors"),
    ),
    "exllamav2": ParityEngine(
        package="exllamav2",
        distribution="exllamav2",
        module=_PARITY + "exllamav2_rotation",
        settings=_started_with("-l"),
        reasons=Reasons(factors=_AT_START, temperature=_AT_START),
    ),
    "exllamav3": ParityEngine(
        package="exllamav3",
        distribution="exllamav3",
        module=_PARITY + "exllamav3_rotation",
        settings=_one,
        reasons=Reasons(
            factors="always long where max_position_embeddings is above the original length",
            temperature="always that of the long factors",
        ),
    ),
    "onnxruntime-genai": ParityEngine(
        package="onnxruntime_genai",
        distribution="onnxruntime-genai",
        module=_PARITY + "onnxruntime_genai_rotation",
        settings=_tables,
        architecture="phi3",
        reasons=Reasons(temperature=_ONE_TEMPERATURE),
    ),
    "tensorrt-llm": ParityEngine(
        package="tensorrt_llm",
        distribution="tensorrt-llm",
        settings=_one,
        refusal="its rotation is in kernels of a package that needs its GPU",
    ),
}
"""Engines by name, as `export` names them. llama.cpp shows its rotation in logits alone; see `logits`."""
