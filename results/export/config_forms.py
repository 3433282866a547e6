"""config.json as engines read it that take their RoPE from `rope_scaling` and the top level alone."""

import json
import math
from collections.abc import Collection, Mapping

from results.export.engine import SourceModel
from results.export.lists import ExportedLists
from rope.factors import RescaleFactors
from rope.temperature import longrope_temperature

CONFIG = "config.json"
FRAGMENT = "config_fragment.json"
SAME_TEMPERATURE = 1e-6
"""Relative difference up to which two temperatures are one: that of float32."""


def version_4_entries(
    factors: RescaleFactors,
    lists: ExportedLists,
    source: SourceModel | None,
    *,
    max_position_embeddings: int,
    extra: Mapping[str, float] | None = None,
) -> dict[str, object]:
    """Return the entries as transformers 4 spells them, `type` alone, which every engine but transformers 5 needs.

    The original length stands at the top, where ExLlamaV2 and TensorRT-LLM look, and inside, where mlx-lm does.
    `factor` and `attention_factor`, which none of these engines reads, keep the target length and the temperature
    where another window is declared.

    Args:
        factors, lists, source: What to export, and the model.
        max_position_embeddings: Window to declare, tokens.
        extra: Further entries of `rope_scaling`.
    """
    share = None if source is None else source.partial_rotary_factor
    scaling = {
        "type": "longrope",
        "short_factor": lists.short,
        "long_factor": lists.long,
        "factor": factors.scale,
        "attention_factor": factors.attention_temperature,
        "original_max_position_embeddings": factors.original_length,
        **(extra or {}),
    }
    return {
        "max_position_embeddings": max_position_embeddings,
        "original_max_position_embeddings": factors.original_length,
        "rope_theta": factors.base,
        **({} if share is None else {"partial_rotary_factor": share}),
        "rope_scaling": scaling,
    }


def config_files(
    source: SourceModel | None, entries: Mapping[str, object], *, without: Collection[str] = ("rope_parameters",)
) -> dict[str, str]:
    """Return the model's whole config.json with these entries in place of its own, or without a model the entries.

    Args:
        source: The model.
        entries: What replaces its own.
        without: Entries of the model that are dropped.
    """
    if source is None:
        return {FRAGMENT: json_text(entries)}
    kept = {name: value for name, value in source.config.items() if name not in without}
    return {CONFIG: json_text({**kept, **entries})}


def config_steps(source: SourceModel | None, *steps: str) -> tuple[str, ...]:
    """Return the steps, before them what to do with a fragment where no model was given.

    Args:
        source: The model.
        *steps: What follows.
    """
    if source is not None:
        return steps
    merge = "put the entries of {folder}/" + FRAGMENT + " into the model's config.json, and remove its rope_parameters"
    return (merge, *steps)


def json_text(document: Mapping[str, object]) -> str:
    """Return a file's JSON, which gives every bit of its numbers back.

    Args:
        document: What JSON can hold.
    """
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def declared_window(factors: RescaleFactors, engine: str, *, least: int, most: int) -> tuple[int, tuple[str, ...]]:
    """Return the max_position_embeddings from which an engine computes the factors' attention temperature, and a note.

    Such engines read no temperature: they take sqrt(1 + ln(max_position_embeddings / L) / ln L). Where the factors
    have another one, a longer window that is declared gives it.

    Args:
        factors: What to export.
        engine: Its name, for messages.
        least, most: Windows that the engine can be told, tokens.

    Raises:
        ValueError: No window within the limits gives the temperature.
    """
    wanted, original = factors.attention_temperature, factors.original_length
    own = longrope_temperature(factors.scale, original)
    if math.isclose(own, wanted, rel_tol=SAME_TEMPERATURE):
        return factors.target_length, ()
    # ln overflows at no temperature, its exponential does
    exponent = wanted**2 * math.log(original)
    window = round(math.exp(exponent)) if exponent < 40 else most + 1
    if wanted < 1 or not least <= window <= most:
        raise ValueError(
            f"attention temperature must be one that {engine} can compute, which is {own:.4f} for {original} to "
            f"{factors.target_length} tokens, got {wanted:.4f}. Export to transformers, vllm or sglang, "
            f"which take any, or set attention_temperature to {own!r} and measure the factors with it."
        )
    note = (
        f"{engine} computes the attention temperature from max_position_embeddings: {window} stands there instead of "
        f"{factors.target_length}, so that it is {longrope_temperature(window / original, original):.6f}; the factors "
        f"are for {factors.target_length} tokens all the same."
    )
    return window, (note,)
