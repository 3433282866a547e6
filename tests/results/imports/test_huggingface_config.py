"""Configurations of transformers 4 and 5, against the frequencies that transformers itself makes of them."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from results.imports.huggingface_config import import_config
from results.imports.imported import Given, Imported
from rope.factors import RescaleFactors
from rope.frequencies import rescaled_inverse_frequencies

# transformers raises the base to a power in float32, good to a few units in the last place (1.2e-7).
FLOAT32_TOLERANCE = 2e-6

LONG = [1.0, 1.5, 2.25, 3.4, 5.0, 5.5, 6.25, 7.75]
SHORT = [1.0, 1.0, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5]
SIZE = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4}
TOP = {**SIZE, "rope_theta": 500_000.0, "max_position_embeddings": 2048}
LLAMA3 = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 256}
LISTS = {"short_factor": SHORT, "long_factor": LONG}


def longrope(**changes: Any) -> dict[str, Any]:
    """Return a configuration as version 4 writes it; what is None is left out."""
    scaling = {"type": "longrope", **LISTS, **changes.pop("scaling", {})}
    entries = {**TOP, "original_max_position_embeddings": 512, "rope_scaling": scaling, **changes}
    return {name: value for name, value in entries.items() if value is not None}


def of_transformers(folder: Path, config: Mapping[str, Any], *, length: int) -> tuple[NDArray[np.float64], float]:
    """Return the inverse frequencies and the temperature of a forward of that many tokens."""
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    loaded = AutoConfig.from_pretrained(folder)
    inv_freq, temperature = ROPE_INIT_FUNCTIONS[loaded.rope_parameters["rope_type"]](loaded, "cpu", seq_len=length)
    return inv_freq.double().numpy(), float(temperature)


def check_both_windows(folder: Path, config: Mapping[str, Any], imported: Imported) -> None:
    """Check the factors of both windows against transformers' own."""
    factors = imported.factors
    inside = factors.short or factors.with_values([1.0] * len(factors.values), method="none").with_temperature(1.0)
    for window, length in ((factors, factors.target_length), (inside, factors.original_length)):
        inv_freq, temperature = of_transformers(folder, config, length=length)
        np.testing.assert_allclose(rescaled_inverse_frequencies(window), inv_freq, rtol=FLOAT32_TOLERANCE)
        assert window.attention_temperature == pytest.approx(temperature, rel=1e-12)


CONFIGS: dict[str, dict[str, Any]] = {
    "longrope-v4": longrope(),
    "longrope-v4-phi3": {**longrope(), "model_type": "phi3"},
    "longrope-v4-attention_factor": longrope(scaling={"attention_factor": 1.25}),
    "longrope-v4-original-inside": longrope(
        original_max_position_embeddings=None, scaling={"original_max_position_embeddings": 512}
    ),
    "longrope-v4-factor": longrope(scaling={"factor": 8.0}),
    "longrope-v4-top-wins": longrope(scaling={"original_max_position_embeddings": 1024}),
    "longrope-v4-head_dim": {**longrope(), "hidden_size": 4096, "head_dim": 16},
    "longrope-v5": {
        **SIZE,
        "max_position_embeddings": 2048,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 500_000.0,
            "original_max_position_embeddings": 512,
            **LISTS,
        },
    },
    "longrope-v5-partial": {
        "model_type": "phi3",
        "hidden_size": 128,
        "num_attention_heads": 4,
        "max_position_embeddings": 2048,
        "original_max_position_embeddings": 512,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "partial_rotary_factor": 0.5,
            "original_max_position_embeddings": 512,
            **LISTS,
        },
    },
    "linear": {**TOP, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "dynamic": {**TOP, "rope_scaling": {"type": "dynamic", "factor": 4.0}},
    "yarn": {**TOP, "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}},
    "yarn-not-whole": {
        **TOP,
        "rope_scaling": {"rope_type": "yarn", "factor": 3.3, "original_max_position_embeddings": 500},
    },
    "yarn-beta-attention_factor": {
        **TOP,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "attention_factor": 1.3,
            "original_max_position_embeddings": 512,
        },
    },
    "yarn-deepseek": {
        **TOP,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 40.0,
            "mscale": 1.0,
            "mscale_all_dim": 0.707,
            "original_max_position_embeddings": 512,
        },
    },
    "llama3": {**TOP, "max_position_embeddings": 4096, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_both_windows_rotate_as_transformers_rotates_them(tmp_path: Path, name: str) -> None:
    check_both_windows(tmp_path, CONFIGS[name], import_config(CONFIGS[name], Given()))


def test_lists_windows_and_model_are_read_as_they_are_written() -> None:
    factors = import_config(longrope(), Given()).factors
    # sqrt(1 + ln 4 / ln 512) by hand: 1 + 2/9 under the root
    assert factors == RescaleFactors(
        values=tuple(LONG),
        rotary_dim=16,
        base=5e5,
        original_length=512,
        target_length=2048,
        attention_temperature=math.sqrt(11 / 9),
        short_values=tuple(SHORT),
        short_attention_temperature=math.sqrt(11 / 9),
        method="imported",
    )


def test_a_short_list_of_ones_is_the_models_own_rotation() -> None:
    factors = import_config(longrope(scaling={"short_factor": [1] * 8}), Given()).factors
    assert factors.short_values is None


def test_llama_3_2_has_its_scaling_at_every_length() -> None:
    config = {
        "model_type": "llama",
        "head_dim": 64,
        "hidden_size": 2048,
        "num_attention_heads": 32,
        "max_position_embeddings": 131_072,
        "rope_theta": 500_000.0,
        "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    }
    imported = import_config(config, Given())
    factors = imported.factors
    assert (factors.rotary_dim, factors.original_length, factors.target_length) == (64, 8192, 131_072)
    assert (factors.values[0], factors.values[-1]) == (1.0, 32.0)
    assert factors.short_values == factors.values
    assert factors.method == "llama3"
    assert "Llama-3's scaling rotates alike at every length" in imported.notes[-1]


def test_the_windows_of_vllm_and_phimoe_have_a_temperature_each() -> None:
    scaling = {"short_mscale": 1.0, "long_mscale": 1.19}
    factors = import_config(longrope(scaling=scaling), Given()).factors
    assert (factors.attention_temperature, factors.short_attention_temperature) == (1.19, 1.0)
    imported = import_config(longrope(scaling={**scaling, "attention_factor": 1.3}), Given())
    assert (imported.factors.attention_temperature, imported.factors.short_attention_temperature) == (1.19, 1.0)
    assert "take attention_factor, 1.3, in both windows" in imported.notes[0]


def test_a_factor_that_is_no_ratio_of_the_windows_is_told() -> None:
    imported = import_config(longrope(scaling={"factor": 8.0}), Given())
    assert imported.notes[0].startswith("factor is 8, but the windows make 4: ")


def test_a_window_is_taken_from_the_factor_where_there_is_one_alone() -> None:
    config = longrope(original_max_position_embeddings=None, scaling={"factor": 4.0})
    factors = import_config(config, Given()).factors
    assert (factors.original_length, factors.target_length) == (2048, 8192)


def test_what_the_user_says_of_windows_goes_before_the_configuration() -> None:
    factors = import_config(longrope(), Given(original_length=256, target_length=4096)).factors
    assert (factors.original_length, factors.target_length) == (256, 4096)
    # The model is served with the temperature of its own windows
    assert factors.attention_temperature == math.sqrt(11 / 9)


def test_a_scaling_alone_needs_base_and_windows_from_its_user() -> None:
    scaling = {"type": "su", **LISTS}
    given = Given(base=1e4, original_length=512, target_length=2048)
    factors = import_config(scaling, given).factors
    assert (factors.rotary_dim, factors.base) == (16, 1e4)
    assert factors.attention_temperature == factors.short_attention_temperature == math.sqrt(11 / 9)


def test_of_a_multimodal_model_the_text_part_is_read() -> None:
    assert import_config({"model_type": "x", "text_config": longrope()}, Given()) == import_config(longrope(), Given())


def test_of_layer_types_full_attention_is_read_and_the_others_are_told() -> None:
    full = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
    nested = {"full_attention": full, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
    imported = import_config({**SIZE, "max_position_embeddings": 512, "rope_parameters": nested}, Given())
    assert imported.factors.values == (8.0,) * 8
    assert imported.factors.base == 1e6
    assert imported.notes[0].startswith("Layers of other types than full attention rotate otherwise")


def test_rope_scaling_goes_before_rope_parameters_as_in_transformers(tmp_path: Path) -> None:
    other = {"rope_type": "longrope", "rope_theta": 5e5, "long_factor": SHORT, "short_factor": SHORT}
    config = longrope(rope_parameters=other)
    imported = import_config(config, Given())
    assert "rope_parameters holds other factors than rope_scaling" in imported.notes[0]
    check_both_windows(tmp_path, config, imported)


def test_the_part_of_a_latent_attention_that_rotates_is_read() -> None:
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    factors = import_config(
        {**TOP, "hidden_size": 7168, "qk_rope_head_dim": 64, "rope_scaling": scaling}, Given()
    ).factors
    assert factors.rotary_dim == 64


def test_an_assumed_window_is_told() -> None:
    imported = import_config(CONFIGS["linear"], Given())
    assert "max_position_embeddings, 2048, is taken for it" in imported.notes[0]
    assert (imported.factors.original_length, imported.factors.target_length) == (2048, 8192)
    told = import_config(CONFIGS["linear"], Given(original_length=512, target_length=2048))
    assert not [note for note in told.notes if "is taken for it" in note]


def test_dynamic_ntk_is_for_its_target_alone() -> None:
    imported = import_config(CONFIGS["dynamic"], Given())
    assert imported.factors.short is None
    assert imported.notes[-1] == ("Dynamic NTK changes with every length: these are its factors at 8192 tokens alone.")


def without(config: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != name}


YARN_REST = {"factor": 4.0, "original_max_position_embeddings": 512}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TOP, "the configuration must have a scaling of RoPE, got neither rope_scaling nor rope_parameters: "),
        (
            {**TOP, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
            "the configuration must have a scaling of RoPE, got rope_type default: ",
        ),
        ({**TOP, "rope_scaling": "longrope"}, "rope_scaling must be a JSON object, got 'longrope'. "),
        (
            {**TOP, "rope_scaling": {"type": "longrope", "short_factor": SHORT}},
            "a scaling of type longrope must have long_factor and short_factor, got no long_factor. ",
        ),
        (
            {**TOP, "rope_scaling": {"type": "longrope", "long_factor": LONG}},
            "a scaling of type longrope must have long_factor and short_factor, got no short_factor. ",
        ),
        (
            longrope(scaling={"long_factor": LONG * 2}),
            "long_factor must have 8 entries (rotary_dim 16 / 2), got 16. Was it made for another model?",
        ),
        (
            longrope(scaling={"short_factor": SHORT[:4]}),
            "short_factor must have 8 entries (rotary_dim 16 / 2), got 4. Was it made for another model?",
        ),
        (longrope(scaling={"long_factor": "1, 2"}), "long_factor must be a list of numbers, got '1, 2'. "),
        (longrope(scaling={"long_factor": [*LONG[:7], -1.0]}), "values[7] must be a finite number above 0, got -1.0. "),
        (
            without(longrope(), "rope_theta"),
            "the configuration must say the RoPE base, got none (rope_theta). Give --base; most architectures",
        ),
        (
            without(longrope(), "original_max_position_embeddings"),
            "the configuration must say original_max_position_embeddings, got none. Give --original-length.",
        ),
        (
            without(longrope(), "max_position_embeddings"),
            "the configuration must say max_position_embeddings, got none. Give --target-length.",
        ),
        (longrope(rope_theta="1e4"), "rope_theta must be a finite number above 0, got '1e4'. "),
        (
            longrope(original_max_position_embeddings=512.5),
            "original_max_position_embeddings must be a whole number of at least 1, got 512.5. ",
        ),
        (
            {**TOP, "rope_scaling": {"type": "ntk", "factor": 4.0}},
            "the scaling must be longrope, linear, dynamic, yarn, ",
        ),
        ({**TOP, "rope_scaling": {"type": "linear"}}, "a linear scaling must have a factor, got none. "),
        ({**TOP, "rope_scaling": {"type": "dynamic", "alpha": 1000.0}}, "a dynamic scaling must have a factor only, "),
        (
            {**TOP, "rope_scaling": {"type": "yarn", "truncate": False, **YARN_REST}},
            "a yarn scaling must have its ramp between whole pairs, got truncate false, ",
        ),
        (
            {**TOP, "rope_scaling": {"type": "llama3", **YARN_REST}},
            "a llama3 scaling must have low_freq_factor and high_freq_factor, got one missing. ",
        ),
        (
            {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
            "the configuration must say max_position_embeddings, got none. Give --original-length.",
        ),
        (
            {"rope_theta": 1e4, "max_position_embeddings": 512, "rope_scaling": {"type": "linear", "factor": 2.0}},
            "the rotary dim must be known, got a source that is silent. Give --rotary-dim.",
        ),
        (
            {**TOP, "rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
            "a model that rotates by layer type must have full_attention among them, got ['sliding_attention']. ",
        ),
    ],
)
def test_what_cannot_be_read_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as caught:
        import_config(config, Given())
    assert "\n" not in str(caught.value)


def test_a_base_or_rotary_dim_that_contradicts_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^--base must be what the source says, 500000, got 10000\. Leave it out\.$"):
        import_config(longrope(), Given(base=1e4))
    with pytest.raises(ValueError, match=r"^--rotary-dim must be what the source says, 16, got 32\. Leave it out\.$"):
        import_config(longrope(), Given(rotary_dim=32))
