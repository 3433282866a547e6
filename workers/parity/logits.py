"""Whether a served model's logits follow ours: nearer to those with the right factors than to those with any other.

Shapes: T tokens, V vocabulary.
"""

import importlib
import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, GgufConfig

from results.export.engine import Mode
from results.parity import DIFFERS, SAME, UNVERIFIED
from rope.factors import RescaleFactors
from rope.identity import none_factors
from workers.model import LoadedModel
from workers.parity.model_config import read_config
from workers.parity.process import ask

NEARER = 3.0
"""How many times nearer the right logits must be than the next ones. A 4-bit SmolLM2 in llama.cpp, which rounds
activations to 8 bits too, was 3.3 to 4.5 times nearer; in float32 engines are thousands of times nearer."""
NUM_LAST = 8
"""Tokens whose logits are compared, the last ones of a prompt."""
NUM_SPREAD = 64
"""Tokens of a prompt whose positions are spread over a window."""


class Contender(NamedTuple):
    """One rotation that a served model may have."""

    name: str
    """What it is, for a verdict."""
    factors: RescaleFactors | None
    """What to install; None for the model as it was loaded."""


class Prompt(NamedTuple):
    """Tokens, and where they stand."""

    ids: list[int]
    """Token ids."""
    positions: list[int]
    """Their positions, ascending."""


class LogitsVerdict(NamedTuple):
    """What came of one prompt."""

    factors: str
    """What the logits are nearest to."""
    ratio: float
    """Distance to the nearest wrong logits over that to the right ones."""
    verdict: str
    """same, differs, or not verified."""


def contenders(factors: RescaleFactors, *, native_scaling: str) -> list[Contender]:
    """Return every rotation that a served model may have: two lists, each with both temperatures.

    Args:
        factors: What was exported.
        native_scaling: The scaling that the model was saved with; "default" is none.

    Returns:
        The long factors, the short ones, and their mixtures; each once.
    """
    window = {"original_length": factors.original_length, "target_length": factors.target_length}
    short = factors.short
    if short is None and native_scaling == "default":
        short = none_factors(factors.rotary_dim, factors.base, **window)
    found = [Contender("long", factors), Contender("short", short)]
    if short is not None:
        low, high = short.attention_temperature, factors.attention_temperature
        found.append(Contender(f"long at temperature {low:.4g}", factors.with_temperature(low)))
        found.append(Contender(f"short at temperature {high:.4g}", short.with_temperature(high)))
    kept: dict[tuple[tuple[float, ...], float] | None, Contender] = {}
    for contender in found:
        one = contender.factors
        kept.setdefault(None if one is None else (one.values, one.attention_temperature), contender)
    return list(kept.values())


def wanted_name(num_tokens: int, original_length: int, mode: Mode) -> str:
    """Return which contender a prompt should follow.

    Args:
        num_tokens: Tokens that decide between the lists.
        original_length: The original window, tokens.
        mode: dual or pinned.
    """
    return "short" if mode == "dual" and num_tokens <= original_length else "long"


def spread_prompt(ids: Sequence[int], num_tokens: int) -> Prompt:
    """Return a short prompt whose positions reach over a whole window: as cheap as short, as far as long.

    Args:
        ids: Token ids to take, `NUM_SPREAD` of them at least.
        num_tokens: The window; the last token stands at its end.
    """
    positions = np.unique(np.linspace(0, num_tokens - 1, min(NUM_SPREAD, num_tokens)).round().astype(int)).tolist()
    return Prompt(list(ids[: len(positions)]), positions)


def reference_logits(
    loaded: LoadedModel, rotations: Sequence[Contender], prompt: Prompt
) -> dict[str, NDArray[np.float64]]:
    """Return a model's logits under every rotation, by Ropewalk's own patch.

    Args:
        loaded: The model, as it was before.
        rotations: What to install.
        prompt: What to read.

    Returns:
        Logits of the last tokens by the rotation's name, each of shape (NUM_LAST, V).
    """
    found = {}
    with loaded.patch:
        for contender in rotations:
            loaded.patch.restore()
            if contender.factors is not None:
                loaded.patch.install(contender.factors)
            found[contender.name] = model_logits(loaded.model, prompt)
    return found


def model_logits(model: Any, prompt: Prompt) -> NDArray[np.float64]:
    """Return the logits of a prompt's last tokens.

    Args:
        model: A causal LM of transformers.
        prompt: What it reads.

    Returns:
        Shape (NUM_LAST, V), or fewer for a shorter prompt.
    """
    ids = torch.tensor([prompt.ids], device=model.device)
    places = torch.tensor([prompt.positions], device=model.device)
    # With a mask: without one, transformers takes a gap in the positions for the start of another text
    mask = torch.ones_like(ids)
    with torch.inference_mode():
        logits = model(input_ids=ids, position_ids=places, attention_mask=mask, use_cache=False).logits
    last: NDArray[np.float64] = logits[0, -NUM_LAST:].double().cpu().numpy()
    return last


def exported_model(path: str, config: Mapping[str, object], *, dtype: torch.dtype, device: torch.device) -> Any:
    """Return the model as plain transformers loads it with an exported config.json.

    Args:
        path: Folder, .gguf file, or hub id that holds its weights.
        config: The exported config.json.
        dtype: Precision of weights and activations.
        device: Where it goes.

    Returns:
        The model, in evaluation mode.
    """
    options: dict[str, object] = {"dtype": dtype, "local_files_only": True, "config": read_config(config)}
    if path.endswith(".gguf"):
        options |= {"gguf_file": Path(path).name, "quantization_config": GgufConfig(dequantize=True)}
        path = str(Path(path).parent)
    auto: Any = AutoModelForCausalLM
    return auto.from_pretrained(path, **options).to(device).eval()


def judge_logits(got: NDArray[np.float64], references: Mapping[str, NDArray[np.float64]], wanted: str) -> LogitsVerdict:
    """Return whether logits follow the right rotation.

    Args:
        got: Logits of the served model, shape (T, V).
        references: Ours by rotation, each of shape (T, V); where lists are equal, one name stands for both.
        wanted: Name of the right one.

    Returns:
        What they are nearest to, by the mean absolute difference, and the verdict.
    """
    wanted = wanted if wanted in references else next(iter(references))
    distances = {name: float(np.abs(got - logits).mean()) for name, logits in references.items()}
    nearest = min(distances, key=distances.__getitem__)
    wrong = [distance for name, distance in distances.items() if name != wanted]
    right = distances[wanted]
    ratio = math.nan if not wrong else math.inf if right == 0 else min(wrong) / right
    if nearest != wanted:
        return LogitsVerdict(nearest, ratio, f"{DIFFERS}logits follow {nearest}, not {wanted}")
    if not wrong:
        return LogitsVerdict(
            nearest, ratio, f"{UNVERIFIED}there is one rotation only, which logits cannot tell from others"
        )
    if ratio < NEARER:
        text = (
            f"{UNVERIFIED}logits are only {ratio:.2g} times nearer to {wanted} than to the next, {NEARER:g} would tell"
        )
        return LogitsVerdict(nearest, ratio, text)
    return LogitsVerdict(nearest, ratio, SAME)


def llama_cpp_logits(
    gguf: Path, prompt: Prompt, *, context_length: int, search_paths: Sequence[Path]
) -> NDArray[np.float64]:
    """Return the logits of a prompt's last tokens from llama.cpp, in a process of its own.

    Args:
        gguf: The model.
        prompt: What it reads, from position 0 on.
        context_length: Tokens of context that it is loaded with; this decides between the lists.
        search_paths: Folders from which its package is imported.

    Returns:
        Shape (NUM_LAST, V).

    Raises:
        EngineError: It could not be loaded, or failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "logits.npy")
        question = json.dumps(
            {
                "gguf": str(gguf),
                "ids": prompt.ids,
                "context_length": context_length,
                "num_last": NUM_LAST,
                "output": str(output),
            }
        )
        ask("workers.parity.llama_cpp_process", [], question, search_paths=search_paths)
        logits: NDArray[np.float64] = np.load(output).astype(np.float64)
        return logits


GgufWriter = Callable[..., object]
"""`results.export.gguf_file.write_gguf`."""


def gguf_writer() -> GgufWriter | None:
    """Return what exports to GGUF; None where this version cannot."""
    try:
        writer: GgufWriter = importlib.import_module("results.export.gguf_file").write_gguf
    except ModuleNotFoundError:
        return None
    return writer
