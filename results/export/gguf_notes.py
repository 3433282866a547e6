"""What to type for a GGUF file with factors, and what the engines that read it do otherwise than Ropewalk."""

import shlex
from pathlib import Path

from results.export.engine import Mode
from rope.factors import RescaleFactors

CONTEXT_STEP = 256
"""llama.cpp rounds the length of a context up to a multiple of this."""


def llama_cpp_steps(target: Path, factors: RescaleFactors, mode: Mode, short_temperature: float) -> tuple[str, ...]:
    """Return the command lines for both windows.

    Args:
        target: The file.
        factors, mode: What it holds.
        short_temperature: What should multiply cos and sin with the short list.
    """
    model = shlex.quote(str(target))
    border = factors.original_length // CONTEXT_STEP * CONTEXT_STEP
    long = f"llama-server -m {model} -c {factors.target_length}   # up to {factors.target_length} tokens"
    if mode == "pinned" or not border:
        return (long,)
    remedy = short_temperature / factors.attention_temperature
    temperature = "" if remedy == 1 else f" --yarn-attn-factor {remedy:.9g}"
    return (long, f"llama-server -m {model} -c {border}{temperature}   # short factors")


def llama_cpp_notes(factors: RescaleFactors, mode: Mode, short_temperature: float) -> tuple[str, ...]:
    """Return what llama.cpp does otherwise than Ropewalk, a sentence each.

    Args:
        factors, mode: What the file holds.
        short_temperature: What should multiply cos and sin with the short list.
    """
    original, temperature = factors.original_length, factors.attention_temperature
    notes = []
    if mode == "pinned":
        notes.append(_PINNED)
    else:
        notes += [
            f"llama.cpp chooses once per context, not per prompt: the long list where -c is above {original}, however "
            "short the prompt, else the short one. With --no-kv-unified, -c divided by -np is what counts.",
            "Always give -c: without it llama-server fits the context to free memory, and with that the list; "
            "llama-cpp-python's n_ctx is 512, the short list, unless given (0: the target length).",
        ]
        if original % CONTEXT_STEP:
            notes.append(_rounding("-c", original))
        if temperature != short_temperature:
            notes.append(
                f"llama.cpp has one attention temperature for both lists, {temperature:g}: with the short list, "
                f"--yarn-attn-factor {short_temperature / temperature:.9g} (yarn_attn_factor in "
                "llama-cpp-python) gives the model inside its original window back."
            )
    if temperature != 1:
        notes.append("Leave --context-shift off: each shift multiplies cached keys by the attention temperature again.")
    return tuple(notes)


def ollama_notes(factors: RescaleFactors, mode: Mode, short_temperature: float) -> tuple[str, ...]:
    """Return what Ollama does otherwise than Ropewalk, a sentence each; num_ctx is all that its user can set.

    Args:
        factors, mode: What the file holds.
        short_temperature: What should multiply cos and sin with the short list.
    """
    original, temperature = factors.original_length, factors.attention_temperature
    if mode == "pinned":
        return (_PINNED,)
    notes = [
        f"Ollama chooses once per load, not per prompt: the long list where num_ctx is above {original}, however "
        "short the prompt, else the short one.",
    ]
    if original % CONTEXT_STEP:
        notes.append(_rounding("num_ctx", original))
    if temperature != short_temperature:
        notes.append(
            f"The attention temperature is {temperature:g} with the short list too, instead of {short_temperature:g}, "
            "and Ollama has no setting for it: inside its original window, serve the model as it was."
        )
    return tuple(notes)


_PINNED = "Both lists are the long one: short prompts rotate with it too."


def _rounding(option: str, original: int) -> str:
    below = original // CONTEXT_STEP * CONTEXT_STEP
    return (
        f"The original length {original} is no multiple of {CONTEXT_STEP}, to which llama.cpp rounds {option} up: "
        f"{option} {original} takes the long list, {f'{option} {below} or less' if below else f'and no {option}'} "
        "the short one."
    )
