"""Models whose forward cannot be trimmed: found, said, and scored by plain forwards."""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from needles.document import NeedleDocument
from rope.factors import RescaleFactors
from tests.workers.architectures import REFUSED
from tests.workers.trimming import (
    CPU,
    SDPA,
    TOLERANCE,
    ids,
    llama_of_three_layers,
    make_model,
    plain_logits,
    state,
    tiny,
    trimmed,
    trimmed_logits,
)
from workers.attention import PREFIX
from workers.model import LoadedModel, load_model
from workers.scoring import NeedleScoring
from workers.trimmed import NotTrimmableError, trimming_refusal

Load = Callable[[str], LoadedModel]
MakeFactors = Callable[..., RescaleFactors]
Documents = list[NeedleDocument]


@pytest.fixture
def llama() -> PreTrainedModel:
    """A tiny LLaMA."""
    return llama_of_three_layers()


@pytest.mark.parametrize("name", list(REFUSED))
def test_a_model_with_other_layers_is_refused_with_a_reason(name: str) -> None:
    model = make_model(name)
    before, logits = state(model), plain_logits(model, ids())
    reason = trimming_refusal(model, attention=SDPA, device=CPU)
    assert reason.startswith(type(model).__name__)
    assert "\n" not in reason
    assert state(model) == before
    assert torch.equal(plain_logits(model, ids()), logits)


@pytest.mark.parametrize("name", ["falcon", "llama4", "qwen3_next"])
def test_a_model_that_is_refused_is_scored_by_plain_forwards(
    name: str,
    save_model: Callable[[PreTrainedConfig], Path],
    make_factors: MakeFactors,
    documents: Documents,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        loaded = load_model(str(save_model(REFUSED[name]())), dtype="float32", device="cpu")
    assert not loaded.is_trimmed
    assert f"every forward is a plain one, slower and with more memory: {type(loaded.model).__name__}" in caplog.text
    assert loaded.attention == loaded.model.config.get_text_config()._attn_implementation
    factors = make_factors(loaded, "yarn", 1.1)
    measured = NeedleScoring(loaded, documents).score(factors, [document.id for document in documents])
    loaded.patch.install(factors)
    for document, measurement in zip(documents, measured, strict=True):
        input_ids = torch.from_numpy(document.token_ids.astype(np.int64))[None]
        labels = input_ids.clone()
        labels[:, : document.answer_start] = -100
        with torch.inference_mode():
            expected = loaded.model(input_ids=input_ids, labels=labels).loss.item()
        assert measurement.sum_nll / measurement.num_tokens == pytest.approx(expected, rel=TOLERANCE)


def test_a_mask_that_is_wrong_for_fewer_queries_than_keys_is_found() -> None:
    reason = trimming_refusal(tiny("llama"), attention=PREFIX + "upper left", device=CPU)
    assert re.match(r"^LlamaForCausalLM: logits differ by [01]\.\d+ of their norm$", reason)


def test_logits_of_another_shape_are_found(llama: PreTrainedModel) -> None:
    def twice(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output.repeat(1, 2, 1) if output.shape[1] == 5 else output

    llama.get_submodule("lm_head").register_forward_hook(twice)
    expected = "LlamaForCausalLM: logits of shape (2, 10, 260), not (2, 5, 260)"
    assert trimming_refusal(llama, attention=SDPA, device=CPU) == expected


def test_logits_that_are_no_numbers_are_found(llama: PreTrainedModel) -> None:
    llama.get_submodule("lm_head").register_forward_hook(
        lambda module, args, output: output * torch.nan if output.shape[1] == 5 else output
    )
    reason = trimming_refusal(llama, attention=SDPA, device=CPU)
    assert reason == "LlamaForCausalLM: logits differ by nan of their norm"


def test_attention_in_chunks_is_refused(llama: PreTrainedModel) -> None:
    llama.config.attention_chunk_size = 8
    reason = trimming_refusal(llama, attention=SDPA, device=CPU)
    assert reason == "LlamaForCausalLM has attention that no flash kernel computes"


def test_a_model_whose_layers_cannot_be_told_is_refused(llama: PreTrainedModel) -> None:
    llama.config.num_hidden_layers = 5
    with pytest.raises(NotTrimmableError, match=r"^LlamaForCausalLM has no list of 5 layers$"), trimmed(llama, 50):
        pass


def other_layers() -> dict[str, tuple[Callable[..., Any], str]]:
    def without_cache(hidden_states: Tensor, position_ids: Tensor | None = None) -> Tensor:
        return hidden_states

    def without_keys(hidden_states: Tensor, past_key_values: Any = None, **_: object) -> Tensor:
        return hidden_states

    def with_tuple(hidden_states: Tensor, past_key_values: Any = None, **_: object) -> tuple[Tensor]:
        if past_key_values is not None:
            past_key_values.update(*[hidden_states[:, None]] * 2)
        return (hidden_states,)

    return {
        "without cache": (without_cache, r"^function takes no cache$"),
        "without keys": (without_keys, r"^a layer gives no keys and values to its cache$"),
        "with a tuple": (with_tuple, r"^a layer returns tuple, not its hidden states$"),
    }


class Layer(nn.Module):
    """A layer of another kind."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.forward = forward


@pytest.mark.parametrize("kind", list(other_layers()))
def test_a_layer_of_another_kind_is_refused(llama: PreTrainedModel, kind: str) -> None:
    forward, message = other_layers()[kind]
    llama.model.layers[2] = Layer(forward)
    with pytest.raises(NotTrimmableError, match=message.replace("function", "Layer")):
        trimmed_logits(llama, ids(), 50)
    assert vars(llama.model.layers[0]).get("forward") is None


def test_a_layer_that_is_called_without_names_is_refused(llama: PreTrainedModel) -> None:
    with (
        trimmed(llama, 50),
        pytest.raises(NotTrimmableError, match=r"^a layer is called with 2 arguments without names$"),
    ):
        llama.model.layers[0](torch.zeros(1, 128, 32), None)


def test_padding_is_refused(llama: PreTrainedModel) -> None:
    mask = torch.ones_like(ids())
    mask[0, :5] = 0
    message = r"^a layer is called with a tensor attention_mask$"
    with torch.inference_mode(), trimmed(llama, 50), pytest.raises(NotTrimmableError, match=message):
        llama(input_ids=ids(), attention_mask=mask, use_cache=False)
