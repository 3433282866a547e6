"""Formulas that a Hugging Face configuration names, as the factors that transformers gets from them.

All but the dynamic one rotate alike at every length, so that the same factors hold inside the original window.
"""

import math
from dataclasses import replace

import numpy as np

from results.imports.config_fields import RopeConfig
from results.imports.imported import Given, Imported
from rope.factors import RescaleFactors
from rope.frequencies import factors_of_kept_share
from rope.identity import none_factors
from rope.llama3 import llama3_factors
from rope.ntk import dynamic_ntk_factors
from rope.yarn import BETA_FAST, BETA_SLOW, yarn_ramp

_ASSUMED = (
    "The configuration says no original window, and max_position_embeddings, {length}, is taken for it; give "
    "--original-length if it is the extended one."
)
_EVERYWHERE = "{name} rotates alike at every length: the same factors and temperature hold inside the original window."


def linear_of(rope: RopeConfig, given: Given) -> Imported:
    """Return Position Interpolation's factors: the configuration's factor for every pair.

    Args:
        rope: The configuration.
        given: What the user says beside it.

    Raises:
        ValueError: The factor, the base, a window or the rotary dimension is missing or wrong.

    Source: transformers 5.23, `_compute_linear_scaling_rope_parameters`.
    """
    factor = _factor(rope)
    unscaled, notes = _unscaled(rope, given, factor)
    factors = unscaled.with_values([factor] * len(unscaled.values), method="linear")
    return _at_every_length(factors, 1.0, "Position Interpolation", notes)


def dynamic_of(rope: RopeConfig, given: Given) -> Imported:
    """Return dynamic NTK's factors at the target length; engines rotate by others at every other length.

    Args:
        rope: The configuration.
        given: What the user says beside it.

    Raises:
        ValueError: As `linear_of`; or the configuration has `alpha`, which is another method.

    Source: transformers 5.23, `_compute_dynamic_ntk_parameters`.
    """
    if rope.parameters.get("alpha") is not None:
        raise ValueError(
            "a dynamic scaling must have a factor only, got alpha, which is another method. Give a list of factors."
        )
    factor = _factor(rope)
    unscaled, notes = _unscaled(rope, given, factor)
    factors = dynamic_ntk_factors(
        unscaled.rotary_dim,
        unscaled.base,
        original_length=unscaled.original_length,
        target_length=unscaled.target_length,
        factor=factor,
    )
    note = f"Dynamic NTK changes with every length: these are its factors at {factors.target_length} tokens alone."
    return Imported(factors=factors, form="a Hugging Face configuration, dynamic", notes=(*notes, note))


def yarn_of(rope: RopeConfig, given: Given) -> Imported:
    """Return YaRN's factors and its temperature, DeepSeek's mscale and mscale_all_dim included.

    Args:
        rope: The configuration.
        given: What the user says beside it.

    Raises:
        ValueError: As `linear_of`; or the ramp is not truncated to whole pairs.

    Source: transformers 5.23, `_compute_yarn_parameters`.
    """
    if rope.parameters.get("truncate") is False:
        raise ValueError(
            "a yarn scaling must have its ramp between whole pairs, got truncate false, which no formula here has. "
            "Give a list of factors."
        )
    factor = _factor(rope, of_windows=True)
    unscaled, notes = _unscaled(rope, given, factor)
    beta_fast, beta_slow = rope.number("beta_fast") or BETA_FAST, rope.number("beta_slow") or BETA_SLOW
    ramp = yarn_ramp(unscaled.rotary_dim, unscaled.base, unscaled.original_length, beta_fast, beta_slow)
    factors = unscaled.with_values(factors_of_kept_share(np.float64(1.0) - ramp, factor), method="yarn")
    temperature = rope.number("attention_factor")
    if temperature is None:
        mscale, all_dim = rope.number("mscale"), rope.number("mscale_all_dim")
        temperature = _yarn_temperature(factor, 1.0)
        if mscale is not None and all_dim is not None:
            temperature = _yarn_temperature(factor, mscale) / _yarn_temperature(factor, all_dim)
    return _at_every_length(factors, temperature, "YaRN", notes)


def llama3_of(rope: RopeConfig, given: Given) -> Imported:
    """Return the factors of Llama-3.1's scaling.

    Args:
        rope: The configuration.
        given: What the user says beside it.

    Raises:
        ValueError: As `linear_of`; or low_freq_factor or high_freq_factor is missing.

    Source: transformers 5.23, `_compute_llama3_parameters`.
    """
    factor, low, high = _factor(rope), rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if low is None or high is None:
        raise ValueError("a llama3 scaling must have low_freq_factor and high_freq_factor, got one missing. Add it.")
    unscaled, notes = _unscaled(rope, given, factor)
    factors = llama3_factors(
        unscaled.rotary_dim,
        unscaled.base,
        original_length=unscaled.original_length,
        target_length=unscaled.target_length,
        low_freq_factor=low,
        high_freq_factor=high,
        factor=factor,
    )
    return _at_every_length(factors, 1.0, "Llama-3's scaling", notes)


def _factor(rope: RopeConfig, *, of_windows: bool = False) -> float:
    factor, original_length, longest = rope.number("factor"), rope.original_length(), rope.longest()
    if factor is None and of_windows and original_length is not None and longest is not None:
        return longest / original_length
    if factor is None:
        raise ValueError(f"a {rope.rope_type} scaling must have a factor, got none. Add it.")
    return factor


def _unscaled(rope: RopeConfig, given: Given, factor: float) -> tuple[RescaleFactors, tuple[str, ...]]:
    """Return the model and its windows as factors of 1, and what was assumed of them."""
    said, longest = rope.original_length(), rope.longest()
    original_length = given.original_length or said or longest
    if original_length is None:
        raise ValueError("the configuration must say max_position_embeddings, got none. Give --original-length.")
    assumed = given.original_length is None and said is None
    reached = max(int(original_length * factor), original_length)
    if rope.rope_type == "llama3" and longest is not None:
        reached = max(longest, original_length)  # its factor is no ratio of windows: Llama 3.1 has 8 for 16x
    unscaled = none_factors(
        rope.rotary_dim(given),
        rope.base(given),
        original_length=original_length,
        target_length=given.target_length or reached,
    )
    return unscaled, (*rope.notes, _ASSUMED.format(length=original_length)) if assumed else rope.notes


def _at_every_length(factors: RescaleFactors, temperature: float, name: str, notes: tuple[str, ...]) -> Imported:
    everywhere = replace(
        factors,
        attention_temperature=temperature,
        short_values=factors.values,
        short_attention_temperature=temperature,
    )
    return Imported(
        factors=everywhere,
        form=f"a Hugging Face configuration, {factors.method}",
        notes=(*notes, _EVERYWHERE.format(name=name)),
    )


def _yarn_temperature(factor: float, share: float) -> float:
    return 0.1 * share * math.log(factor) + 1.0 if factor > 1 else 1.0
