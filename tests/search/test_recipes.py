"""The recipes in search/configs: read by the command, and true in what their comments say of the model."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from rope.critical_dimension import critical_dim_candidates
from search.cli import build_search_parser
from search.config import SearchConfig

CONFIGS = Path(__file__).parents[2] / "search" / "configs"
ORACLES = Path(__file__).parents[1] / "oracles" / "critical_dimensions.json"
FACTS = re.compile(
    r"^# rotary_dim (\d+), base (\d+), window (\d+): theoretical critical dimension (\d+), searched from (\d+)\.$", re.M
)
PUBLISHED = {
    "llama3-8b-128k": "llama3_8b",
    "llama-3.2-1b-256k": "llama3.2_1b_base8192",
    "phi-3-mini-128k": "phi3_mini_4k",
    "phi-4-mini-128k": "phi3_mini_4k",  # the same rotation: three quarters of 128, base 10000, window 4096
    "mistral-7b-128k": "mistral_7b_v0.3",
    "qwen2.5-7b-128k": "qwen2.5_7b",
    "qwen3-8b-128k": "qwen3_dim128_32k",
    "smollm2-135m-32k": "smollm2_135m",
}
"""Recipe -> its model among the published critical dimensions."""


def parsed(name: str) -> SearchConfig:
    """Return the search that a recipe asks for, with a model and a corpus where it leaves them to its user."""
    path = CONFIGS / f"{name}.yaml"
    parser = build_search_parser()
    options = parser.parse_args(["--model", "model", "--corpus", "book.txt", "--config", str(path)])
    settings = parser.instantiate(options)
    return SearchConfig(**{key: settings[key] for key in SearchConfig.__dataclass_fields__})


def facts(name: str) -> dict[str, int]:
    found = FACTS.findall((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    assert len(found) == 1, f"{name} must say its model's facts in one comment"
    return dict(
        zip(("rotary_dim", "base", "original_length", "theoretical", "lowest"), map(int, found[0]), strict=True)
    )


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.yaml") if "finetune" not in path.stem))
def test_every_recipe_is_read_by_the_command(name: str) -> None:
    assert parsed(name).target_length > 0


@pytest.mark.parametrize(("name", "model"), PUBLISHED.items())
def test_what_a_recipe_says_of_its_model_is_published(name: str, model: str) -> None:
    published: dict[str, Any] = json.loads(ORACLES.read_text(encoding="utf-8"))[model]
    told = facts(name)
    assert told == {key: published[key] for key in told}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_critical_dimensions_of_a_recipe_are_those_that_would_be_searched(name: str) -> None:
    told = facts(name)
    searched = critical_dim_candidates(told["rotary_dim"], float(told["base"]), told["original_length"])
    assert (searched[0], searched[-1]) == (told["lowest"], told["theoretical"])


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_names_its_model_and_extends_its_window(name: str) -> None:
    config, told = parsed(name), facts(name)
    assert "/" in config.model
    assert config.original_length in (None, told["original_length"])
    assert config.target_length % told["original_length"] == 0
    assert config.target_length // told["original_length"] >= 4
    text = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
    scale = config.target_length // told["original_length"]
    assert f" to {config.target_length:,} tokens ({scale}x)" in text
