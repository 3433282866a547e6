"""What a search measures first: formulas at several temperatures, and lists that exist."""

from dataclasses import replace
from pathlib import Path

from results.measurement import candidate_key
from rope.factors import RescaleFactors, load_factors
from rope.methods import METHODS, PAPER_TEMPERATURE
from rope.temperature import attention_temperature
from search.config import SearchConfig
from workers.model import ModelDescription

WARMER = (1.5, 2.0, 2.5)
"""Temperatures at which the best formula is measured too, in YaRN's excess over 1."""
BEST = "best"
"""The temperature choice that stands for the best formula's."""
PAPER = "paper"
"""The temperature choice that stands for a formula's own."""


def formula_factors(
    config: SearchConfig, model: ModelDescription, *, temperature: float | None = None
) -> list[RescaleFactors]:
    """Return every formula at every temperature that the configuration asks for, each distinct candidate once.

    Args:
        config: The whole search. The fixed temperature of algorithm longrope2 is among those asked for.
        model: What the formulas are for.
        temperature: The one temperature to use instead.

    Returns:
        The formulas, then the lists of `formulas.files` with the temperatures of their files.

    Raises:
        ValueError: A file holds no factors of this model and window, or has the name of a formula.
    """
    choices: list[float | str] = [*config.formulas.temperatures]
    if config.algorithm == "longrope2" and config.space.attention_temperature != BEST:
        choices.append(config.space.attention_temperature)
    found: dict[str, RescaleFactors] = {}
    for name in config.formulas.methods:
        factors = formula(name, config, model)
        for choice in choices if temperature is None else [temperature]:
            chosen = attention_temperature(
                PAPER_TEMPERATURE[name] if choice == PAPER else choice,
                scale=factors.scale,
                original_length=factors.original_length,
            )
            candidate = factors.with_temperature(chosen)
            found.setdefault(candidate_key(candidate), candidate)
    for path in config.formulas.files:
        factors = _read(Path(path), config, model)
        candidate = factors if temperature is None else factors.with_temperature(temperature)
        found.setdefault(candidate_key(candidate), candidate)
    return list(found.values())


def formula(name: str, config: SearchConfig, model: ModelDescription) -> RescaleFactors:
    """Return the factors of a formula for the run's model and target, at temperature 1."""
    return METHODS[name](
        model.geometry.rotary_dim,
        model.geometry.base,
        original_length=model.geometry.original_length,
        target_length=config.target_length,
    )


def warmer(best: RescaleFactors) -> list[RescaleFactors]:
    """Return the best formula at higher temperatures than the papers': some models want more.

    Args:
        best: Factors; YaRN's temperature for their scale, 1 + 0.1 ln s, is what is gone beyond.
    """
    excess = attention_temperature("yarn", scale=best.scale, original_length=best.original_length) - 1.0
    return [best.with_temperature(1.0 + times * excess) for times in WARMER]


def _read(path: Path, config: SearchConfig, model: ModelDescription) -> RescaleFactors:
    """Return the factors of a file for the run's target, named like the file or the run that they come from."""
    file = path / "factors.json" if path.is_dir() else path
    geometry = model.geometry
    read = load_factors(
        file, rotary_dim=geometry.rotary_dim, base=geometry.base, original_length=geometry.original_length
    )
    name = file.parent.name if file.name == "factors.json" else file.stem
    if name in METHODS:
        raise ValueError(f"formulas.files must not be named like a formula, got {name}. Rename it, or its folder.")
    # What they are inside the window plays no part in a search for the long one
    return replace(
        read,
        target_length=config.target_length,
        method=name,
        short_values=None,
        short_attention_temperature=1.0,
    )
