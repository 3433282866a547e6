"""The fragment of config.json, read by transformers itself."""

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, set_seed
from transformers.utils import logging as transformers_logging

from results.export.huggingface import huggingface_fragment
from rope.factors import RescaleFactors

PUBLISHED_FILE = Path(__file__).parents[1] / "oracles" / "longrope2_llama3_8b.json"

# transformers raises the base to a power in float32, good to a few units in the last place (1.2e-7).
FLOAT32_TOLERANCE = 2e-6

FACTORS = RescaleFactors(
    values=(1.0, 1.5, 2.25, 3.4, 5.0, 5.5, 6.25, 7.75),
    rotary_dim=16,
    base=500_000.0,
    original_length=32,
    target_length=128,
    critical_dim=4,
    attention_temperature=1.25,
    method="longrope2",
)
ORIGINAL = {"model_type": "llama", "rope_theta": 500_000.0, "max_position_embeddings": 32}


@pytest.fixture(scope="module")
def published() -> RescaleFactors:
    oracle = json.loads(PUBLISHED_FILE.read_text(encoding="utf-8"))
    return RescaleFactors.from_list(
        oracle["long_factor"],
        rotary_dim=oracle["rotary_dim"],
        base=oracle["base"],
        original_length=oracle["original_length"],
        target_length=oracle["target_length"],
        critical_dim=oracle["critical_dim"],
        attention_temperature=oracle["attention_factor"],
    )


@pytest.fixture
def transformers_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    transformers_logging.enable_propagation()
    with caplog.at_level(logging.WARNING, logger="transformers"):
        yield caplog
    transformers_logging.disable_propagation()


def load(folder: Path, entries: Mapping[str, object], *, head_dim: int = 16) -> PreTrainedModel:
    """Return a tiny random model, always with the same weights, from a config.json with these entries."""
    size = {
        "vocab_size": 32,
        "hidden_size": 2 * head_dim,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": head_dim,
        "pad_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps({**size, **entries}), encoding="utf-8")
    set_seed(0)
    config = AutoConfig.from_pretrained(folder)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    return model


def rotary_module(model: PreTrainedModel) -> torch.nn.Module:
    return model.get_submodule(f"{model.base_model_prefix}.rotary_emb")


def rotation(model: PreTrainedModel, num_tokens: int) -> tuple[np.ndarray, float]:
    """Return the inverse frequencies, float64 of shape (rotary_dim / 2,), and the temperature of a forward."""
    rotary = rotary_module(model)
    cos, _ = rotary(torch.zeros(1), torch.arange(num_tokens)[None])
    return rotary.get_buffer("inv_freq").double().numpy(), float(cos[0, 0, 0])


def logits(model: PreTrainedModel, num_tokens: int) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = model(input_ids=torch.arange(num_tokens)[None] % 32).logits
    return output


def expected_inv_freq(factors: RescaleFactors) -> np.ndarray:
    """Return LongRoPE2's eq. 8 in float64, shape (rotary_dim / 2,)."""
    pairs = np.arange(factors.rotary_dim // 2)
    return 1.0 / (np.array(factors.values) * factors.base ** (2 * pairs / factors.rotary_dim))


def test_published_llama3_factors_load_as_the_published_config_does(tmp_path: Path, published: RescaleFactors) -> None:
    published_entries = {
        "model_type": "llama",
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 8192,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "type": "longrope",
            "long_factor": list(published.values),
            "short_factor": [1.0] * 64,
        },
    }
    theirs = load(tmp_path, published_entries, head_dim=128)
    ours = load(tmp_path, {"model_type": "llama", **huggingface_fragment(published)}, head_dim=128)
    for num_tokens in (1, 8192, 8193):
        their_inv_freq, their_temperature = rotation(theirs, num_tokens)
        our_inv_freq, our_temperature = rotation(ours, num_tokens)
        assert np.array_equal(our_inv_freq, their_inv_freq)
        assert our_temperature == their_temperature
    assert rotary_module(ours).attention_scaling == 1.1435437497937313


def test_published_llama3_factors_give_the_inverse_frequencies_of_eq_8(
    tmp_path: Path, published: RescaleFactors
) -> None:
    model = load(tmp_path, {"model_type": "llama", **huggingface_fragment(published)}, head_dim=128)
    inv_freq, _ = rotation(model, 8193)
    np.testing.assert_allclose(inv_freq, expected_inv_freq(published), rtol=FLOAT32_TOLERANCE)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3", "gemma", "phi3"])
def test_every_architecture_takes_the_long_factors_beyond_the_original_length_only(
    tmp_path: Path, model_type: str
) -> None:
    model = load(tmp_path, {**ORIGINAL, "model_type": model_type, **huggingface_fragment(FACTORS)})
    short, _ = rotation(model, 32)
    long, temperature = rotation(model, 33)
    np.testing.assert_allclose(short, 500_000.0 ** (-np.arange(8) / 8), rtol=FLOAT32_TOLERANCE)
    np.testing.assert_allclose(long, expected_inv_freq(FACTORS), rtol=FLOAT32_TOLERANCE)
    assert temperature == 1.25


@pytest.mark.parametrize(
    "older",
    [
        {"rope_scaling": None},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 2.0}},
    ],
    ids=["v4", "v4-linear", "v4-llama3", "v5", "v5-yarn"],
)
def test_no_older_entry_of_the_model_survives_the_merge(tmp_path: Path, older: Mapping[str, object]) -> None:
    model = load(tmp_path, {**ORIGINAL, **older, **huggingface_fragment(FACTORS)})
    inv_freq, temperature = rotation(model, 33)
    np.testing.assert_allclose(inv_freq, expected_inv_freq(FACTORS), rtol=FLOAT32_TOLERANCE)
    assert temperature == 1.25


@pytest.mark.parametrize("kept", ["rope_scaling", "rope_parameters"])
def test_either_of_the_two_entries_is_enough_for_transformers_5(tmp_path: Path, kept: str) -> None:
    fragment = huggingface_fragment(FACTORS)
    del fragment["rope_parameters" if kept == "rope_scaling" else "rope_scaling"]
    model = load(tmp_path, {**ORIGINAL, **fragment})
    inv_freq, temperature = rotation(model, 33)
    np.testing.assert_allclose(inv_freq, expected_inv_freq(FACTORS), rtol=FLOAT32_TOLERANCE)
    assert temperature == 1.25


def test_the_model_saved_and_loaded_again_by_transformers_keeps_the_factors(tmp_path: Path) -> None:
    load(tmp_path, {**ORIGINAL, **huggingface_fragment(FACTORS)}).save_pretrained(tmp_path)
    inv_freq, temperature = rotation(AutoModelForCausalLM.from_pretrained(tmp_path), 33)
    np.testing.assert_allclose(inv_freq, expected_inv_freq(FACTORS), rtol=FLOAT32_TOLERANCE)
    assert temperature == 1.25


def test_rope_scaling_is_spelled_as_transformers_4_reads_it() -> None:
    known = {"type", "short_factor", "long_factor", "attention_factor", "factor", "original_max_position_embeddings"}
    fragment = huggingface_fragment(FACTORS)
    scaling = fragment["rope_scaling"]
    assert isinstance(scaling, dict)
    assert scaling.keys() - known == {"rope_theta"}
    assert fragment["rope_theta"] == scaling["rope_theta"] == 500_000.0
    assert isinstance(scaling["factor"], float)  # version 4 warns of whole numbers
    assert scaling["factor"] == 4.0


def test_an_architecture_with_its_own_spelling_of_the_base_takes_that_of_the_factors(tmp_path: Path) -> None:
    own = {"model_type": "gpt_neox", "rotary_emb_base": 500_000.0, "rotary_pct": 0.5, "max_position_embeddings": 32}
    fragment = huggingface_fragment(FACTORS, partial_rotary_factor=0.5)
    load(tmp_path, own, head_dim=32).config.save_pretrained(tmp_path)
    saved_by_transformers_5 = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    inv_freq, _ = rotation(load(tmp_path, {**saved_by_transformers_5, **fragment}, head_dim=32), 33)
    np.testing.assert_allclose(inv_freq, expected_inv_freq(FACTORS), rtol=FLOAT32_TOLERANCE)


@pytest.mark.parametrize("model_type", ["llama", "phi3"])
def test_transformers_finds_nothing_to_warn_of(
    tmp_path: Path, transformers_log: pytest.LogCaptureFixture, model_type: str
) -> None:
    load(tmp_path, {**ORIGINAL, "model_type": model_type, **huggingface_fragment(FACTORS)})
    assert transformers_log.messages == []


@pytest.mark.parametrize("model_type", ["phi3", "stablelm"])
def test_partial_rotary_stays_the_models_own_where_it_is_an_entry_of_its_own(tmp_path: Path, model_type: str) -> None:
    entries = {**ORIGINAL, "model_type": model_type, "partial_rotary_factor": 0.5, **huggingface_fragment(FACTORS)}
    inv_freq, _ = rotation(load(tmp_path, entries, head_dim=32), 33)
    np.testing.assert_allclose(inv_freq, expected_inv_freq(FACTORS), rtol=FLOAT32_TOLERANCE)


@pytest.mark.parametrize("model_type", ["phi3", "stablelm"])
def test_partial_rotary_can_be_given_where_the_model_has_it_inside_rope_parameters(
    tmp_path: Path, model_type: str
) -> None:
    own = {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0, "partial_rotary_factor": 0.5}}
    fragment = huggingface_fragment(FACTORS, partial_rotary_factor=0.5)
    model = load(tmp_path, {**ORIGINAL, "model_type": model_type, **own, **fragment}, head_dim=32)
    inv_freq, _ = rotation(model, 33)
    np.testing.assert_allclose(inv_freq, expected_inv_freq(FACTORS), rtol=FLOAT32_TOLERANCE)


def test_at_temperature_1_the_model_inside_its_window_is_the_original_bit_for_bit(tmp_path: Path) -> None:
    original = load(tmp_path, ORIGINAL)
    extended = load(tmp_path, {**ORIGINAL, **huggingface_fragment(FACTORS.with_temperature(1.0))})
    assert torch.equal(logits(extended, 32), logits(original, 32))
    assert not torch.equal(logits(extended, 33), logits(original, 33))


def test_transformers_applies_another_temperature_inside_the_window_too(tmp_path: Path) -> None:
    original = load(tmp_path, ORIGINAL)
    extended = load(tmp_path, {**ORIGINAL, **huggingface_fragment(FACTORS)})
    assert rotation(extended, 1)[1] == 1.25
    assert not torch.equal(logits(extended, 32), logits(original, 32))


def test_short_factors_are_taken_inside_the_window(tmp_path: Path) -> None:
    short_factors = [1.0, 1.0, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5]
    model = load(tmp_path, {**ORIGINAL, **huggingface_fragment(FACTORS, short_factors)})
    expected = 500_000.0 ** (-np.arange(8) / 8) / short_factors
    np.testing.assert_allclose(rotation(model, 32)[0], expected, rtol=FLOAT32_TOLERANCE)


def test_start_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^exported factors must have num_start_tokens 0, got 8: no engine keeps .*$"):
        huggingface_fragment(replace(FACTORS, num_start_tokens=8))


def test_short_factors_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^short_factors must have 8 entries, one per frequency pair, got 16\. .*$"):
        huggingface_fragment(FACTORS, [1.0] * 16)


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf")])
def test_short_factors_that_are_no_finite_numbers_above_0_are_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match=rf"^short_factors must be finite numbers above 0, got {wrong}\. .*$"):
        huggingface_fragment(FACTORS, [1.0] * 7 + [wrong])
