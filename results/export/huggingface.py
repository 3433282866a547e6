"""Export to Hugging Face transformers: the part of config.json that makes a model read factors."""

import math
from collections.abc import Sequence

from rope.factors import RescaleFactors


def huggingface_fragment(
    factors: RescaleFactors,
    short_factors: Sequence[float] | None = None,
    *,
    partial_rotary_factor: float | None = None,
) -> dict[str, object]:
    """Return the entries of config.json, each replacing the model's own, with which plain transformers loads factors.

    For models that rotate alike in all layers. Each forward takes the long factors when its last position lies beyond
    the original length, the short ones otherwise; a KV cache that was filled before keeps what it was filled with.
    transformers multiplies cos and sin by the attention temperature in the short window **too**: only at temperature
    1 is the model inside its original length the original model, bit for bit.

    The factors are written twice, so that no older entry survives the merge. `rope_scaling` is what transformers 4
    and most engines read, and transformers 5 prefers it where both are there; it says `type`, since some engines
    know only that and others refuse both spellings. `rope_parameters` is transformers 5's own. Both hold the base:
    transformers 5 takes it from there, and a base that is missing becomes the architecture's default in silence;
    transformers 4 warns of a key that it does not know and reads `rope_theta` beside them.

    Args:
        factors: What to export.
        short_factors: Factors inside the original length, shape (rotary_dim / 2,), above 0; default: those that
            the factors bring, else all 1.
        partial_rotary_factor: The model's own, where it rotates only a part of each head. Needed where its config
            keeps the entry inside `rope_parameters`, which is replaced; elsewhere the model's own stays in force.

    Returns:
        What JSON can hold: lists, numbers, text.

    Raises:
        ValueError: factors keep start tokens unscaled, which no engine can; or short_factors has another length or
            an entry that is not a finite number above 0.

    Source: transformers 5.23, `modeling_rope_utils.py`.
    """
    check_start_tokens(factors.num_start_tokens)
    num_pairs = len(factors.values)
    if short_factors is None:
        short_factors = factors.short_values or (1.0,) * num_pairs
    short = _checked_short_factors(short_factors, num_pairs)
    partial = {} if partial_rotary_factor is None else {"partial_rotary_factor": partial_rotary_factor}
    rotation = {
        "rope_theta": factors.base,
        **partial,
        "long_factor": list(factors.values),
        "short_factor": short,
        "factor": factors.scale,
        "attention_factor": factors.attention_temperature,
        "original_max_position_embeddings": factors.original_length,
    }
    return {
        "max_position_embeddings": factors.target_length,
        "original_max_position_embeddings": factors.original_length,
        "rope_theta": factors.base,
        **partial,
        "rope_scaling": {"type": "longrope", **rotation},
        "rope_parameters": {"rope_type": "longrope", **rotation},
    }


def check_start_tokens(num_start_tokens: int) -> None:
    """Refuse factors that no engine can rotate with.

    Args:
        num_start_tokens: Positions that keep their original rotation.

    Raises:
        ValueError: There are some.
    """
    if num_start_tokens > 0:
        raise ValueError(
            f"exported factors must have num_start_tokens 0, got {num_start_tokens}: no engine keeps the first tokens "
            "unscaled. Search without start tokens."
        )


def _checked_short_factors(short_factors: Sequence[float], num_pairs: int) -> list[float]:
    if len(short_factors) != num_pairs:
        raise ValueError(
            f"short_factors must have {num_pairs} entries, one per frequency pair, got {len(short_factors)}. "
            "Was it made for another model?"
        )
    short = [float(value) for value in short_factors]
    wrong = [value for value in short if not (math.isfinite(value) and value > 0)]
    if wrong:
        raise ValueError(f"short_factors must be finite numbers above 0, got {wrong[0]}. Check the list's origin.")
    return short
