"""Factors and models that the tests of exports share."""

import json
from collections.abc import Mapping
from pathlib import Path

from results.export.engine import SourceModel
from rope.factors import RescaleFactors

ORACLES = Path(__file__).parents[2] / "oracles"

# sqrt(1 + ln 4 / ln 32) = sqrt(1.4)
FORMULA_TEMPERATURE = 1.1832159566199232

FACTORS = RescaleFactors(
    values=(1.0, 1.5, 2.25, 3.4, 5.0, 5.5, 6.25, 7.75),
    rotary_dim=16,
    base=500_000.0,
    original_length=32,
    target_length=128,
    attention_temperature=FORMULA_TEMPERATURE,
    method="longrope2",
)


def source(
    model_type: str = "llama", config: Mapping[str, object] | None = None, *, share: float | None = None
) -> SourceModel:
    """Return a model whose config.json has these entries beside a few of its own."""
    own = {"model_type": model_type, "max_position_embeddings": 32, "rope_theta": 500_000.0, "hidden_size": 32}
    return SourceModel(
        name="a model", config={**own, **(config or {})}, model_type=model_type, partial_rotary_factor=share
    )


def published_llama3() -> RescaleFactors:
    """Return LongRoPE2's published factors for LLaMA3-8B at 128k."""
    oracle = json.loads((ORACLES / "longrope2_llama3_8b.json").read_text(encoding="utf-8"))
    return RescaleFactors.from_list(
        oracle["long_factor"],
        rotary_dim=oracle["rotary_dim"],
        base=oracle["base"],
        original_length=oracle["original_length"],
        target_length=oracle["target_length"],
        critical_dim=oracle["critical_dim"],
        attention_temperature=oracle["attention_factor"],
    )
