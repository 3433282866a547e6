"""Who is compared: formulas at their papers' temperatures, and factors from files."""

import logging
import os
from pathlib import Path

from results.answer_tables import UNSCALED
from results.evaluation import BEYOND
from rope.factor_files import file_text
from rope.factors import RescaleFactors, load_factors
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
        ValueError: A formula is unknown; a file cannot be read, does not tell its target length, is for another model
            or is called as the unscaled model; or two have one name.
    """
    longest = max(config.token_lengths)
    original_length = config.original_length or geometry.original_length
    found = [_formula(name, geometry, original_length, max(longest, original_length)) for name in config.method_names]
    for path in config.factor_files:
        file = Path(path) / "factors.json" if Path(path).is_dir() else Path(path)
        factors = _load(file, geometry, original_length)
        found.append(Contender(_name(file), factors))
        if factors.target_length < longest:
            logger.warning("%s is for %d tokens, and lengths beyond are marked %s", file, factors.target_length, BEYOND)
    names = [contender.name for contender in found]
    if len(set(names)) < len(names):
        raise ValueError(f"contenders must have distinct names, got {', '.join(names)}. Rename a file or its folder.")
    return found


def _load(file: Path, geometry: RopeGeometry, original_length: int) -> RescaleFactors:
    if not file_text(file).lstrip().startswith("{"):
        raise ValueError(
            f"{file} must be a file of Ropewalk's own, which tells the lengths that its factors are for, got another "
            "one. Make it one with `ropewalk import`."
        )
    return load_factors(file, rotary_dim=geometry.rotary_dim, base=geometry.base, original_length=original_length)


def _name(file: Path) -> str:
    """Return a file's name, or its folder's where all such files are called alike."""
    # A relative path may have no folder in it, or `..`
    whole = Path(os.path.abspath(file))  # noqa: PTH100 - resolve() follows links
    name = whole.parent.name if whole.name == "factors.json" else whole.stem
    if name == UNSCALED:
        raise ValueError(f"factors of a file must not be called {UNSCALED}, as the unscaled model, got {file}. Rename.")
    return name


def _formula(name: str, geometry: RopeGeometry, original_length: int, target_length: int) -> Contender:
    if name not in METHODS:
        raise ValueError(f"--methods must be among {', '.join(METHODS)}, got {name}. Correct it.")
    factors = METHODS[name](
        geometry.rotary_dim, geometry.base, original_length=original_length, target_length=target_length
    )
    scale = target_length / original_length
    temperature = attention_temperature(PAPER_TEMPERATURE[name], scale=scale, original_length=original_length)
    return Contender(name, factors.with_temperature(temperature))
