"""The two lists and temperatures that an engine is given, for one mode of export."""

from collections.abc import Mapping
from typing import NamedTuple

from results.export.engine import Mode, SourceModel
from results.export.huggingface import check_start_tokens
from results.imports.huggingface_config import longrope_short_window
from rope.factors import RescaleFactors
from rope.geometry import check_number
from rope.llama3 import llama3_factors


class ExportedLists(NamedTuple):
    """What an engine rotates with, inside the original window and beyond it."""

    short: list[float]
    """Factors inside the original window, one per frequency pair."""
    long: list[float]
    """Factors beyond it."""
    short_temperature: float
    """Multiplies cos and sin inside the original window."""
    long_temperature: float
    """Multiplies them beyond it."""


def exported_lists(factors: RescaleFactors, mode: Mode, source: SourceModel | None) -> ExportedLists:
    """Return both lists: in mode dual such that the model inside its window stays what it is, in pinned the long one.

    The short list is the one that the factors bring; without one it is the model's own scaling where it has a known
    one (linear, Llama 3, LongRoPE), to the rounding of float32, and all 1 where it has none.

    Args:
        factors: What to export.
        mode: dual or pinned.
        source: The model, where it is known; None stands for one without a scaling of its own.

    Returns:
        The lists and temperatures.

    Raises:
        ValueError: The factors keep start tokens unscaled, or the model's own scaling is none that a list can say.
    """
    check_start_tokens(factors.num_start_tokens)
    long = list(factors.values)
    if mode == "pinned":
        return ExportedLists(long, long, factors.attention_temperature, factors.attention_temperature)
    if factors.short is not None:
        short, temperature = list(factors.short.values), factors.short.attention_temperature
    else:
        short, temperature = _own_scaling(factors, {} if source is None else source.config)
    return ExportedLists(short, long, temperature, factors.attention_temperature)


def _own_scaling(factors: RescaleFactors, config: Mapping[str, object]) -> tuple[list[float], float]:
    """Return the factors and the temperature with which the model rotates as it is."""
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    assert isinstance(scaling, Mapping)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    num_pairs = len(factors.values)
    try:
        if kind in ("default", "dynamic", None):  # dynamic NTK leaves the original window alone
            return [1.0] * num_pairs, 1.0
        if kind == "linear":
            check_number("factor in config.json", scaling["factor"], above=0.0)
            return [float(scaling["factor"])] * num_pairs, 1.0
        if kind == "llama3":
            return _llama3_list(factors, scaling), 1.0
        if kind in ("longrope", "su"):
            return _longrope_list(factors, config)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"the model's own {kind} scaling must be whole, got a fault in config.json: {error}."
        ) from error
    raise ValueError(
        f"a model's own scaling must be default, linear, dynamic, llama3 or longrope to be kept inside its window, got "
        f"{kind}. Use --mode pinned, or give factors that bring short_values."
    )


def _llama3_list(factors: RescaleFactors, scaling: Mapping[str, object]) -> list[float]:
    numbers: dict[str, float] = {}
    for name in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"):
        value = scaling[name]
        check_number(f"{name} in config.json", value, above=0.0)
        assert isinstance(value, int | float)
        numbers[name] = value
    original_length = int(numbers.pop("original_max_position_embeddings"))
    scaled = llama3_factors(
        factors.rotary_dim,
        factors.base,
        original_length=original_length,
        target_length=max(factors.target_length, original_length),
        **numbers,
    )
    return list(scaled.values)


def _longrope_list(factors: RescaleFactors, config: Mapping[str, object]) -> tuple[list[float], float]:
    short, temperature = longrope_short_window(config)
    if len(short) != len(factors.values):
        raise ValueError(f"short_factor in config.json must have {len(factors.values)} entries, got {len(short)}.")
    return [float(value) for value in short], temperature
