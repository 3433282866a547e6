"""What configurations say about rotary embeddings, however they say it."""

from collections.abc import Callable
from typing import Any

import pytest
from transformers import Gemma3Config, GPT2Config, LlamaConfig, Phi3Config, PreTrainedConfig, Qwen3Config

from workers.geometry import RopeGeometry, rope_geometry

# rotary_dim = head_dim * partial_rotary_factor, by hand from the configurations in conftest.py
EXPECTED = {
    "llama": RopeGeometry(8, 1e4, 64),
    "mistral": RopeGeometry(8, 1e4, 64),
    "qwen2": RopeGeometry(8, 1e4, 64),
    "qwen3": RopeGeometry(16, 1e4, 64),
    "phi3": RopeGeometry(8, 1e4, 64, partial_rotary_factor=0.5),
    "gpt_neox": RopeGeometry(4, 1e4, 64, partial_rotary_factor=0.25),
    "gemma": RopeGeometry(16, 1e4, 64),
    "gemma2": RopeGeometry(16, 1e4, 64),
    "gemma3": RopeGeometry(16, 1e6, 64, by_layer_type=True),
}


def test_every_architecture_says_its_geometry(
    architecture: str, make_config: Callable[[str], PreTrainedConfig]
) -> None:
    assert rope_geometry(make_config(architecture)) == EXPECTED[architecture]


@pytest.mark.parametrize(
    "parameters",
    [
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}},
    ],
)
def test_old_and_new_spellings_say_the_same(parameters: dict[str, Any]) -> None:
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, max_position_embeddings=128, **parameters)
    assert rope_geometry(config) == RopeGeometry(16, 5e5, 128, "linear")


@pytest.mark.parametrize(
    "parameters",
    [
        {"partial_rotary_factor": 0.25},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}},
    ],
)
def test_a_partial_rotation_is_read_at_the_top_and_inside(parameters: dict[str, Any]) -> None:
    config = Phi3Config(hidden_size=128, num_attention_heads=4, pad_token_id=0, **parameters)
    assert rope_geometry(config).rotary_dim == 8


def test_an_explicit_head_dim_wins_over_the_hidden_size() -> None:
    assert rope_geometry(Qwen3Config(hidden_size=64, num_attention_heads=4, head_dim=128)).rotary_dim == 128


def test_the_window_before_a_saved_scaling_is_the_original_one() -> None:
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    saved: dict[str, Any] = {"rope_scaling": scaling | {"original_max_position_embeddings": 8192}}
    inside = LlamaConfig(max_position_embeddings=131_072, **saved)
    on_top = Phi3Config(max_position_embeddings=131_072, original_max_position_embeddings=4096)
    assert rope_geometry(inside).original_length == 8192
    assert rope_geometry(inside).native_scaling == "llama3"
    assert rope_geometry(on_top).original_length == 4096


def test_what_the_user_says_of_the_window_wins() -> None:
    assert rope_geometry(LlamaConfig(max_position_embeddings=128), original_length=32).original_length == 32


def test_a_multimodal_model_is_read_at_its_text_part() -> None:
    assert rope_geometry(Gemma3Config()).base == 1e6


def test_a_configuration_without_a_window_says_which_flag_sets_it() -> None:
    config = LlamaConfig(max_position_embeddings=0)
    with pytest.raises(ValueError, match=r"window must be known, got none .* a llama model.* with --original-length"):
        rope_geometry(config)
    assert rope_geometry(config, original_length=32).original_length == 32


def test_a_window_below_one_token_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--original-length must be at least 1 token, got 0"):
        rope_geometry(LlamaConfig(), original_length=0)


def test_a_model_without_rotation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must have rotary position embeddings \(RoPE\).*gpt2.*no rope_parameters"):
        rope_geometry(GPT2Config())


def test_a_model_that_rotates_in_sliding_windows_only_is_refused(
    make_config: Callable[[str], PreTrainedConfig],
) -> None:
    config = make_config("gemma3")
    config.rope_parameters = {"sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
    with pytest.raises(ValueError, match=r"in its full-attention layers.*rotations for sliding_attention only"):
        rope_geometry(config)
