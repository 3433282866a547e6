"""Factors installed in a loaded model: as transformers' own scaling, restored bit for bit, proved to take effect."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedConfig,
    PreTrainedModel,
)

from rope.factors import RescaleFactors
from rope.frequencies import rescaled_inverse_frequencies
from rope.temperature import longrope_temperature, yarn_temperature
from workers.geometry import FULL_ATTENTION
from workers.model import LoadedModel, load_model
from workers.rope_patch import RopePatch

WINDOW = 64
SCALE = 4.0
TEMPERATURES = {
    "linear": 1.0,
    "llama3": 1.0,
    "yarn": yarn_temperature(SCALE),
    "longrope": longrope_temperature(SCALE, WINDOW),
}
# float32 angles up to 128 radians are good to 1e-5, and two layers carry them into logits of about 10
TOLERANCE = 2e-3

Load = Callable[[str], LoadedModel]
MakeFactors = Callable[..., RescaleFactors]


def logits(model: PreTrainedModel, input_ids: Tensor) -> Tensor:
    with torch.inference_mode():
        result: Tensor = model(input_ids=input_ids, use_cache=False).logits
    return result


def rotary_module(model: PreTrainedModel) -> nn.Module:
    modules: dict[str, nn.Module] = dict(model.named_modules())
    return next(module for name, module in modules.items() if name.endswith("rotary_emb"))


def native_parameters(method: str, factors: RescaleFactors) -> dict[str, Any]:
    """The same scaling as transformers' configurations say it."""
    parameters: dict[str, Any] = {"rope_type": method, "rope_theta": factors.base, "factor": SCALE}
    if method != "linear":
        parameters["original_max_position_embeddings"] = WINDOW
    if method == "llama3":
        parameters |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if method == "longrope":
        parameters |= {"short_factor": [1.0] * len(factors.values), "long_factor": list(factors.values)}
    return parameters


def native_model(folder: Path, loaded: LoadedModel, parameters: dict[str, Any]) -> PreTrainedModel:
    """The same weights with a configuration of its own, in transformers' own code."""
    config = copy.deepcopy(loaded.model.config)
    share = config.rope_parameters.get("partial_rotary_factor")
    if share is not None:
        parameters = parameters | {"partial_rotary_factor": share}
    nested = FULL_ATTENTION in config.rope_parameters
    config.rope_parameters = config.rope_parameters | {FULL_ATTENTION: parameters} if nested else parameters
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.float32, attn_implementation=loaded.model.config._attn_implementation
    )
    return model


@pytest.mark.parametrize("method", list(TEMPERATURES))
def test_installed_factors_give_the_logits_of_transformers_own_scaling(
    architecture: str,
    method: str,
    load: Load,
    model_folder: Callable[[str], Path],
    make_factors: MakeFactors,
    input_ids: Tensor,
) -> None:
    if architecture == "phi3" and method != "longrope":
        pytest.skip("transformers lets Phi-3 have longrope only")
    loaded = load(architecture)
    factors = make_factors(loaded, method, TEMPERATURES[method])
    native = native_model(model_folder(architecture), loaded, native_parameters(method, factors))
    loaded.patch.install(factors)
    ours, theirs = logits(loaded.model, input_ids), logits(native, input_ids)
    torch.testing.assert_close(ours, theirs, rtol=0.0, atol=TOLERANCE)
    loaded.patch.restore()
    # The comparison means something: without factors the logits are far away
    assert (logits(loaded.model, input_ids) - theirs).abs().max() > 10 * TOLERANCE


def test_what_is_measured_is_what_an_exported_longrope_configuration_gives_bit_for_bit(
    load: Load, model_folder: Callable[[str], Path], make_factors: MakeFactors, input_ids: Tensor
) -> None:
    loaded = load("llama")
    factors = make_factors(loaded, "longrope2", 1.125)
    exported = native_parameters("longrope", factors) | {"attention_factor": 1.125}
    loaded.patch.install(factors)
    native = native_model(model_folder("llama"), loaded, exported)
    assert torch.equal(logits(loaded.model, input_ids), logits(native, input_ids))


def test_factors_of_one_leave_an_unscaled_model_as_it_was_bit_for_bit(
    architecture: str, load: Load, make_factors: MakeFactors, input_ids: Tensor
) -> None:
    loaded = load(architecture)
    before = logits(loaded.model, input_ids)
    loaded.patch.install(make_factors(loaded, "none"))
    assert torch.equal(logits(loaded.model, input_ids), before)


def test_a_model_is_restored_bit_for_bit(
    architecture: str, load: Load, make_factors: MakeFactors, input_ids: Tensor
) -> None:
    loaded = load(architecture)
    before = logits(loaded.model, input_ids)
    buffers = {name: buffer.clone() for name, buffer in loaded.model.named_buffers()}
    with loaded.patch as patch:
        patch.install(make_factors(loaded, "linear", 1.5))
        patch.install(replace(make_factors(loaded, "yarn"), num_start_tokens=4))
        assert not torch.equal(logits(loaded.model, input_ids), before)
    after = dict(loaded.model.named_buffers())
    assert after.keys() == buffers.keys()
    assert all(torch.equal(after[name], buffer) for name, buffer in buffers.items())
    assert torch.equal(logits(loaded.model, input_ids), before)


def test_a_model_is_restored_after_an_error(load: Load, make_factors: MakeFactors, input_ids: Tensor) -> None:
    loaded = load("llama")
    before = logits(loaded.model, input_ids)

    def forward_of_an_unknown_token() -> None:
        with loaded.patch as patch:
            patch.install(make_factors(loaded, "linear"))
            logits(loaded.model, torch.tensor([[10_000]]))

    with pytest.raises(IndexError):
        forward_of_an_unknown_token()
    assert torch.equal(logits(loaded.model, input_ids), before)


def test_two_forwards_give_the_same_logits(
    architecture: str, load: Load, make_factors: MakeFactors, input_ids: Tensor
) -> None:
    loaded = load(architecture)
    loaded.patch.install(make_factors(loaded, "yarn", 1.1))
    first = logits(loaded.model, input_ids)
    # A short input between the two must not reset what a dynamic rotation would
    logits(loaded.model, input_ids[:, :8])
    assert torch.equal(logits(loaded.model, input_ids), first)


def test_frequencies_are_float32_in_a_model_that_was_cast_to_bfloat16(load: Load, make_factors: MakeFactors) -> None:
    loaded = load("llama")
    model = loaded.model.to(torch.bfloat16)  # type: ignore[arg-type]
    native = rotary_module(model).inv_freq
    assert native.dtype == torch.bfloat16
    patch = RopePatch(model)
    factors = make_factors(loaded, "yarn")
    patch.install(factors)
    installed = rotary_module(model).inv_freq
    assert isinstance(installed, Tensor)
    assert installed.dtype == torch.float32
    expected = torch.from_numpy(rescaled_inverse_frequencies(factors))
    torch.testing.assert_close(installed.double(), expected, rtol=1e-6, atol=0.0)  # float32
    patch.restore()
    assert rotary_module(model).inv_freq is native


SAVED_SCALINGS: dict[str, dict[str, Any]] = {
    "dynamic": {"factor": 2.0},
    "linear": {"factor": 2.0},
    "yarn": {"factor": 2.0, "original_max_position_embeddings": 32},
    "llama3": {
        "factor": 2.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "longrope": {
        "factor": 2.0,
        "original_max_position_embeddings": 32,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [1.0, 2.0, 3.0, 4.0],
    },
}


@pytest.mark.parametrize("rope_type", list(SAVED_SCALINGS))
def test_factors_replace_the_scaling_a_model_was_saved_with_and_restore_brings_it_back(
    rope_type: str,
    make_config: Callable[[str], PreTrainedConfig],
    save_model: Callable[[PreTrainedConfig], Path],
    load: Load,
    make_factors: MakeFactors,
    input_ids: Tensor,
) -> None:
    config = make_config("llama")
    config.rope_parameters = {"rope_type": rope_type, "rope_theta": 1e4, **SAVED_SCALINGS[rope_type]}
    scaled = load_model(str(save_model(config)), dtype="float32", device="cpu")
    unscaled = load("llama")
    factors = make_factors(unscaled, "yarn", 1.2)
    unscaled.patch.install(factors)
    # 128 tokens and then 8: longer than the window, where a dynamic rotation grows, and shorter, where it resets
    long_before, short_before = logits(scaled.model, input_ids), logits(scaled.model, input_ids[:, :8])
    with scaled.patch as patch:
        patch.install(factors)
        for tokens in (input_ids, input_ids[:, :8], input_ids):
            assert torch.equal(logits(scaled.model, tokens), logits(unscaled.model, tokens))
    assert torch.equal(logits(scaled.model, input_ids), long_before)
    assert torch.equal(logits(scaled.model, input_ids[:, :8]), short_before)


def test_only_full_attention_is_rescaled_where_layers_rotate_by_type(load: Load, make_factors: MakeFactors) -> None:
    loaded = load("gemma3")
    rotary = rotary_module(loaded.model)
    sliding = rotary.sliding_attention_inv_freq
    loaded.patch.install(make_factors(loaded, "linear", 1.5))
    assert rotary.sliding_attention_inv_freq is sliding
    assert rotary.sliding_attention_attention_scaling == 1.0
    assert rotary.full_attention_attention_scaling == 1.5
    assert loaded.patch.kept_layer_types == ["sliding_attention"]


@pytest.mark.parametrize("name", ["llama", "phi3", "gemma3"])
def test_start_tokens_keep_their_angle_and_share_the_temperature(
    name: str, load: Load, make_factors: MakeFactors
) -> None:
    loaded = load(name)
    factors = replace(make_factors(loaded, "linear", 1.5), num_start_tokens=5)
    loaded.patch.install(factors)
    position_ids = torch.arange(9)[None]
    layer_type = [FULL_ATTENTION] if loaded.patch.kept_layer_types else []
    cos, sin = rotary_module(loaded.model)(torch.zeros(1), position_ids, *layer_type)
    # By hand: positions 0..4 turn by the base's frequencies, positions 5..8 four times more slowly, from 0 on
    frequencies = loaded.geometry.base ** (-torch.arange(len(factors.values)) / len(factors.values))
    angles = torch.cat([torch.arange(5), torch.arange(5, 9) / 4])[:, None] * frequencies
    torch.testing.assert_close(cos[0, :, : len(factors.values)], 1.5 * angles.cos(), rtol=0, atol=1e-5)
    torch.testing.assert_close(sin[0, :, : len(factors.values)], 1.5 * angles.sin(), rtol=0, atol=1e-5)


def test_start_tokens_end_where_other_factors_are_installed(
    load: Load, make_factors: MakeFactors, input_ids: Tensor
) -> None:
    loaded = load("llama")
    plain = make_factors(loaded, "linear")
    loaded.patch.install(plain)
    expected = logits(loaded.model, input_ids)
    loaded.patch.install(replace(plain, num_start_tokens=16))
    assert not torch.equal(logits(loaded.model, input_ids), expected)
    loaded.patch.install(plain)
    assert torch.equal(logits(loaded.model, input_ids), expected)


def test_start_tokens_beyond_the_end_give_the_unscaled_model(
    load: Load, make_factors: MakeFactors, input_ids: Tensor
) -> None:
    loaded = load("llama")
    before = logits(loaded.model, input_ids)
    loaded.patch.install(replace(make_factors(loaded, "linear"), num_start_tokens=128))
    assert torch.equal(logits(loaded.model, input_ids), before)


def test_the_check_passes_on_every_architecture_and_restores_it(
    architecture: str, load: Load, input_ids: Tensor
) -> None:
    loaded = load(architecture)
    before = logits(loaded.model, input_ids)
    loaded.patch.check_effect(input_ids[:, :16])
    assert torch.equal(logits(loaded.model, input_ids), before)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_check_sees_an_effect_in_a_model_whose_weights_are_small(
    precision: Any, save_model: Callable[[PreTrainedConfig], Path], make_config: Callable[[str], PreTrainedConfig]
) -> None:
    config = make_config("llama")
    config.initializer_range = 0.02
    loaded = load_model(str(save_model(config)), dtype=precision, device="cpu")
    loaded.patch.check_effect(torch.arange(8)[None])


def test_the_check_fails_where_the_model_rotates_elsewhere(load: Load, input_ids: Tensor) -> None:
    loaded = load("llama")
    rotary = rotary_module(loaded.model)
    cos, sin = rotary(torch.zeros(1), torch.arange(128)[None])
    rotary.forward = lambda x, position_ids: (cos, sin)
    with pytest.raises(
        ValueError, match=r"rescale factors must change the logits, got the same bits .* LlamaForCausalLM"
    ):
        loaded.patch.check_effect(input_ids)


def test_the_check_fails_where_the_attention_temperature_is_ignored(load: Load, input_ids: Tensor) -> None:
    loaded = load("llama")
    rotary = rotary_module(loaded.model)

    def rotate(x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = (position_ids[..., None] * rotary.get_buffer("inv_freq")).repeat(1, 1, 2)
        return angles.cos(), angles.sin()

    rotary.forward = rotate
    with pytest.raises(ValueError, match=r"the attention temperature must change the logits"):
        loaded.patch.check_effect(input_ids)


@pytest.mark.parametrize("changes", [{"rotary_dim": 4, "values": (1.0, 4.0)}, {"base": 5e5}])
def test_factors_for_another_model_are_refused(changes: dict[str, Any], load: Load, make_factors: MakeFactors) -> None:
    loaded = load("llama")
    with pytest.raises(ValueError, match=r"for rotary_dim 8 and base 10000 .*Were they made for another model"):
        loaded.patch.install(replace(make_factors(loaded, "linear"), **changes))


def test_a_model_without_rotary_modules_is_refused() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=10))
    model.config.rope_parameters = {"rope_type": "default", "rope_theta": 1e4}
    with pytest.raises(ValueError, match=r"must have a rotary module with inv_freq .*GPT2LMHeadModel with none"):
        RopePatch(model)


def test_a_partial_rotation_that_the_model_ignores_is_refused(make_config: Callable[[str], PreTrainedConfig]) -> None:
    config = make_config("llama")
    config.rope_parameters = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    with pytest.raises(ValueError, match=r"must have 2 frequencies \(rotary_dim 4 / 2 .*got 4. Correct head_dim"):
        RopePatch(model)


def test_a_base_that_the_model_does_not_have_is_refused(make_config: Callable[[str], PreTrainedConfig]) -> None:
    model = AutoModelForCausalLM.from_config(make_config("llama"))  # type: ignore[no-untyped-call]
    model.config.rope_parameters["rope_theta"] = 5e5
    with pytest.raises(ValueError, match=r"must turn by .* base 500000, got other frequencies"):
        RopePatch(model)
