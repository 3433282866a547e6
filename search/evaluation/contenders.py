"""Who is compared: formulas at their papers' temperatures, and factors from files."""

import logging
from pathlib import Path

from results.evaluation import BEYOND
from rope.factors import load_factors
from rope.methods import METHODS, PAPER_TEMPERATURE
from rope.temperature import attention_temperature
from search.evaluation.config import EvaluationConfig
from workers.evaluate import Contender
from workers.geometry import RopeGeometry

logger = logging.getLogger(__name__)


def read_contenders(config: EvaluationConfig, geometry: RopeGeometry) -> list[Contender]:
    """Return the formulas for the longest length, then the files; a length beyond a file's target is warned about.

    Args:
        config: The evaluation.
        geometry: Of its model.

    Raises:
        ValueError: A formula is unknown, a file cannot be read or is for another model, or two have one name.
    """
    longest = max(config.token_lengths)
    original_length = config.original_length or geometry.original_length
    found = [_formula(name, geometry, original_length, max(longest, original_length)) for name in config.method_names]
    for path in config.factor_files:
        file = Path(path) / "factors.json" if Path(path).is_dir() else Path(path)
        factors = load_factors(
            file,
            rotary_dim=geometry.rotary_dim,
            base=geometry.base,
            original_length=original_length,
        )
        found.append(Contender(file.parent.name if file.name == "factors.json" else file.stem, factors))
        if factors.target_length < longest:
            logger.warning("%s is for %d tokens, and lengths beyond are marked %s", file, factors.target_length, BEYOND)
    names = [contender.name for contender in found]
    if len(set(names)) < len(names):
        raise ValueError(f"contenders must have distinct names, got {', '.join(names)}. Rename a file or its folder.")
    return found


def _formula(name: str, geometry: RopeGeometry, original_length: int, target_length: int) -> Contender:
    if name not in METHODS:
        raise ValueError(f"--methods must be among {', '.join(METHODS)}, got {name}. Correct it.")
    factors = METHODS[name](
        geometry.rotary_dim, geometry.base, original_length=original_length, target_length=target_length
    )
    scale = target_length / original_length
    temperature = attention_temperature(PAPER_TEMPERATURE[name], scale=scale, original_length=original_length)
    return Contender(name, factors.with_temperature(temperature))
