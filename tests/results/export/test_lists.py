"""The short list: the model inside its window stays what it is."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from results.export.lists import exported_lists
from tests.results.export.examples import FACTORS, source

UNSCALED = 500_000.0 ** (-np.arange(8) / 8)
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


@pytest.mark.parametrize("kind", [{"rope_type": "linear", "factor": 2.0}, LLAMA3], ids=["linear", "llama3"])
@pytest.mark.parametrize("entry", ["rope_scaling", "rope_parameters"])
def test_a_models_own_scaling_is_kept_inside_its_window(kind: dict[str, object], entry: str) -> None:
    lists = exported_lists(FACTORS, "dual", source(config={entry: kind}))
    config = LlamaConfig(head_dim=16, max_position_embeddings=32, rope_parameters={"rope_theta": 500_000.0, **kind})
    inv_freq, temperature = ROPE_INIT_FUNCTIONS[str(kind["rope_type"])](config, torch.device("cpu"))
    # transformers computes in float32
    np.testing.assert_allclose(UNSCALED / lists.short, inv_freq.double().numpy(), rtol=2e-6)
    assert lists.short_temperature == temperature == 1.0
    assert lists.long == list(FACTORS.values)


def test_a_longrope_model_keeps_its_short_list_and_the_temperature_that_it_had() -> None:
    own = {"type": "longrope", "short_factor": [1.1] * 8, "long_factor": [2.0] * 8}
    model = source(config={"rope_scaling": own, "max_position_embeddings": 64, "original_max_position_embeddings": 16})
    lists = exported_lists(FACTORS, "dual", model)
    assert lists.short == [1.1] * 8
    assert lists.short_temperature == pytest.approx(math.sqrt(1.5), rel=1e-15)  # sqrt(1 + ln 4 / ln 16)
    given = source(config={"rope_scaling": {**own, "attention_factor": 1.19}})
    assert exported_lists(FACTORS, "dual", given).short_temperature == 1.19


def test_a_longrope_models_own_factor_and_short_mscale_say_its_temperature() -> None:
    own = {"type": "longrope", "short_factor": [1.1] * 8, "long_factor": [2.0] * 8}
    windows: dict[str, Any] = {"max_position_embeddings": 64, "original_max_position_embeddings": 16}
    config = LlamaConfig(
        head_dim=16, rope_parameters={"rope_theta": 500_000.0, **own, "factor": 2.0, "rope_type": "longrope"}, **windows
    )
    _, temperature = ROPE_INIT_FUNCTIONS["longrope"](config, torch.device("cpu"))
    lists = exported_lists(FACTORS, "dual", source(config={"rope_scaling": {**own, "factor": 2.0}, **windows}))
    assert lists.short_temperature == pytest.approx(temperature, rel=1e-15)
    assert lists.short_temperature == pytest.approx(math.sqrt(1.25), rel=1e-15)  # sqrt(1 + ln 2 / ln 16)
    phimoe = {**own, "short_mscale": 1.24, "long_mscale": 1.3}
    lists = exported_lists(FACTORS, "dual", source(config={"rope_scaling": phimoe, **windows}))
    assert lists.short_temperature == 1.24


@pytest.mark.parametrize("kind", ["default", "dynamic"])
def test_a_model_that_is_unscaled_inside_its_window_has_ones(kind: str) -> None:
    lists = exported_lists(FACTORS, "dual", source(config={"rope_scaling": {"rope_type": kind, "factor": 4.0}}))
    assert lists.short == [1.0] * 8


def test_factors_that_bring_a_short_list_win_over_the_models() -> None:
    factors = replace(FACTORS, short_values=(1.2,) * 8)
    assert exported_lists(factors, "dual", source(config={"rope_scaling": LLAMA3})).short == [1.2] * 8


def test_a_scaling_that_no_list_can_say_is_refused_in_dual_and_not_in_pinned() -> None:
    model = source(config={"rope_scaling": {"rope_type": "yarn", "factor": 4.0}})
    with pytest.raises(
        ValueError, match=r"^a model's own scaling must be default, linear, .*, got yarn\. Use --mode pin"
    ):
        exported_lists(FACTORS, "dual", model)
    assert exported_lists(FACTORS, "pinned", model).short == list(FACTORS.values)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "llama3", "factor": 8.0}, r"^the model's own llama3 scaling must be whole, got a fault in "),
        ({**LLAMA3, "factor": "8"}, r"^factor in config\.json must be a finite number above 0, got '8'\."),
        (
            {"type": "longrope", "short_factor": [1.0], "attention_factor": 1.0},
            r"^short_factor in config\.json must have 8 entries, got 1\.$",
        ),
        ({"rope_type": "linear", "factor": "x"}, r"^factor in config\.json must be a finite number above 0, got 'x'\."),
        ({"type": "longrope"}, r"^short_factor in config\.json must be a list of numbers, got None\."),
        (
            {"type": "longrope", "short_factor": 2.0},
            r"^short_factor in config\.json must be a list of numbers, got 2\.0",
        ),
        ({"type": "longrope", "short_factor": ["x"]}, r"^short_factor in config\.json must be a list of numbers, got "),
        (
            {"type": "longrope", "short_factor": [1.0] * 8},
            r"^a longrope config\.json must say max_position_embeddings and",
        ),
    ],
)
def test_a_damaged_scaling_is_refused(scaling: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        exported_lists(FACTORS, "dual", source(config={"rope_scaling": scaling}))
