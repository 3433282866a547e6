"""Packed attention: every kernel gives each document what the plain model gives it alone, and passes gradients back.

Shapes: B packs, T tokens of each, S tokens of all packs; H query heads, G key heads, D dimensions per head; V
vocabulary.
"""

import logging
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from tests.workers.architectures import TRIMMABLE
from tests.workers.trimming import make_model
from workers.attention_kernels import AttentionTerms
from workers.tuning import attention_kernels
from workers.tuning.attention import PACKED, PackedInputs, choose_packed_attention, packed_inputs, register_packed
from workers.tuning.attention_flex import block_mask
from workers.tuning.attention_kernels import (
    Documents,
    PackedAttend,
    documents,
    flexible,
)
from workers.tuning.packs import Pack, pack

CPU = torch.device("cpu")
LENGTHS = ((100, 1, 23), (60, 64))
"""Documents of two packs; some are longer than the window of 48 of the models that have one."""
MODELS = ["llama", "qwen2", "phi3", "gemma2", "mistral", "gemma3", "gpt_oss", "gpt_neox", "qwen3_moe"]
UNTOLD = dict.fromkeys(("nemotron", "stablelm"), "must be told the documents of its packs")
"""Architectures whose layers keep what their attention should be told to themselves."""
OTHERS = {
    "falcon": "attention does not go through transformers' attention interface",
    "jamba": "attention does not go through transformers' attention interface",
    "llama4": "a layer's mask has a window of .* tokens, the layer names no window",
}


def packs_of(lengths: tuple[tuple[int, ...], ...], *, attend_across: bool = False) -> list[Pack]:
    rng = np.random.default_rng(0)
    return [
        pack(
            [rng.integers(0, 256, length) for length in one],
            window="long" if attend_across else "short",
            attend_across=attend_across,
        )
        for one in lengths
    ]


def attending(name: str, attend: PackedAttend) -> PreTrainedModel:
    """An architecture's tiny model with a packed attention."""
    model = make_model(name)
    register_packed({"tested": attend})
    model.set_attn_implementation(PACKED + "tested")
    return model


def called(model: PreTrainedModel, inputs: PackedInputs) -> Tensor:
    """Logits of all packs' tokens, shape (S, V)."""
    options: dict[str, Any] = {name: value for name, value in inputs.items() if name != "labels"}
    logits_BTV: Tensor = model(**options).logits
    return logits_BTV.flatten(0, 1)


def alone(model: PreTrainedModel, inputs: PackedInputs) -> Tensor:
    """Logits of transformers' eager attention, which reads each document by itself, shape (S, V)."""
    ids_S = inputs["input_ids"].flatten()
    bounds = pairwise(inputs["cu_seq_lens_q"].tolist())
    return torch.cat([model(input_ids=ids_S[None, start:end]).logits[0] for start, end in bounds])


def gradients(model: PreTrainedModel, logits_SV: Tensor, inputs: PackedInputs) -> list[Tensor | None]:
    targets_S = functional.pad(inputs["labels"][:, 1:], (0, 1), value=-100).flatten()
    loss = functional.cross_entropy(logits_SV, targets_S, reduction="sum")
    return [*torch.autograd.grad(loss, [*model.parameters()], allow_unused=True)]


def assert_near(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """By the norm: float32 through two layers, sums in another order."""
    assert found.shape == expected.shape
    assert (found - expected).norm().item() <= tolerance * expected.norm().item()


def assert_documents_are_read_alone(model: PreTrainedModel, name: str, *, with_gradients: bool = True) -> None:
    inputs = packed_inputs(packs_of(LENGTHS), CPU)
    plain = make_model(name)
    with torch.set_grad_enabled(with_gradients):
        found, expected = called(model, inputs), alone(plain, inputs)
    assert_near(found, expected)
    if with_gradients:
        parts = zip(gradients(model, found, inputs), gradients(plain, expected, inputs), strict=True)
        for one, other in parts:
            assert (one is None) == (other is None)
            if one is not None and other is not None:
                assert_near(one, other, 1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_gradients_of_packs_are_those_of_documents_alone(name: str) -> None:
    assert_documents_are_read_alone(attending(name, documents), name)


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "gemma3"])
def test_the_mask_that_transformers_makes_of_restarting_positions_agrees_too(name: str) -> None:
    inputs = packed_inputs(packs_of(LENGTHS), CPU)
    masked = make_model(name)
    masked.set_attn_implementation("sdpa")
    logits_BTV = masked(input_ids=inputs["input_ids"], position_ids=inputs["position_ids"], use_cache=False).logits
    assert_near(called(attending(name, documents), inputs), logits_BTV.flatten(0, 1))


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3", "gpt_oss"])
def test_flex_attention_gives_the_logits_of_documents_alone(name: str) -> None:
    # torch has no gradient of flex attention on a CPU
    assert_documents_are_read_alone(attending(name, flexible), name, with_gradients=False)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss"])
def test_scores_written_out_in_pieces_agree_with_their_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_kernels, "ROWS", 32)
    assert_documents_are_read_alone(attending(name, documents), name)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_layers_that_are_computed_again_in_the_backward_pass_know_their_documents(name: str) -> None:
    model = attending(name, documents)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[no-untyped-call]
    model.train()
    assert_documents_are_read_alone(model, name)


def test_a_long_pack_is_read_as_one_text() -> None:
    model, plain = attending("llama", documents), make_model("llama")
    inputs = packed_inputs(packs_of(LENGTHS, attend_across=True), CPU)
    with torch.no_grad():
        assert_near(called(model, inputs), plain(input_ids=inputs["input_ids"]).logits.flatten(0, 1))


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_a_token_changes_nothing_in_other_documents_or_before_it(name: str) -> None:
    model = attending(name, documents)
    inputs = packed_inputs(packs_of(LENGTHS), CPU)
    with torch.no_grad():
        before = called(model, inputs)
        inputs["input_ids"][0, 50] += 1
        changed = (called(model, inputs) != before).any(dim=-1)
    assert changed[50:100].all()
    assert not changed[:50].any()
    assert not changed[100:].any()


def test_the_inputs_of_two_packs_are_these() -> None:
    first = pack([np.array([7, 8, 9]), np.array([5, 6])], window="short", attend_across=False)
    second = pack([np.array([1, 2, 3, 4, 0])], window="short", attend_across=False)
    inputs = packed_inputs([first, second], CPU)
    assert inputs["input_ids"].tolist() == [[7, 8, 9, 5, 6], [1, 2, 3, 4, 0]]
    assert inputs["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 3, 4]]
    assert inputs["labels"].tolist() == [[-100, 8, 9, -100, 6], [-100, 2, 3, 4, 0]]
    assert inputs["cu_seq_lens_q"].tolist() == inputs["cu_seq_lens_k"].tolist() == [0, 3, 5, 10]
    assert inputs["cu_seq_lens_q"].dtype == torch.int32
    assert inputs["max_length_q"] == inputs["max_length_k"] == 5
    assert inputs["use_cache"] is False


@pytest.mark.parametrize("name", TRIMMABLE.keys() - UNTOLD.keys())
def test_a_model_of_these_architectures_reads_packs(name: str) -> None:
    model = make_model(name).train()
    model.config.attention_dropout = 0.0
    assert choose_packed_attention(model) == "documents"
    assert model.config._attn_implementation == PACKED + "documents"
    assert model.training


@pytest.mark.parametrize(("name", "reason"), [*UNTOLD.items(), *OTHERS.items()])
def test_a_model_that_would_read_packs_otherwise_is_refused_with_the_reason(name: str, reason: str) -> None:
    model = make_model(name)
    with pytest.raises(ValueError, match=f"must read the documents of a pack as it reads each alone, got .*{reason}"):
        choose_packed_attention(model)
    assert model.config._attn_implementation == "eager"


def test_layers_that_do_not_name_the_window_of_their_masks_are_refused() -> None:
    model = make_model("gemma2")
    model.model.layers[0].self_attn.sliding_window = None
    with pytest.raises(ValueError, match="a layer's mask has a window of 48 tokens, the layer names no window"):
        choose_packed_attention(model)


def test_attention_that_drops_weights_is_refused() -> None:
    model = make_model("llama")
    model.config.attention_dropout = 0.1
    with pytest.raises(ValueError, match=r"attention_dropout must be 0 for packed attention, got 0\.1\. Set it to 0"):
        choose_packed_attention(model)


def test_a_model_called_without_its_documents_says_so() -> None:
    model = attending("llama", documents)
    with pytest.raises(ValueError, match="LlamaAttention must be told the documents of its packs, got no cu_seq_lens"):
        model(input_ids=torch.zeros(1, 5, dtype=torch.int64))


def test_padding_is_refused() -> None:
    model = attending("llama", documents)
    inputs = packed_inputs(packs_of(LENGTHS), CPU)
    mask_BT = torch.ones_like(inputs["input_ids"])
    mask_BT[0, 0] = 0
    with pytest.raises(ValueError, match="packed attention must be causal, without padding and dropout"):
        model(**inputs, attention_mask=mask_BT)


def test_nothing_of_packed_attention_is_saved(tmp_path: Path) -> None:
    model = make_model("llama")
    choose_packed_attention(model)
    model.save_pretrained(tmp_path)
    assert "ropewalk" not in (tmp_path / "config.json").read_text()


def test_under_autocast_the_kernel_gets_half_precision() -> None:
    dtypes: set[torch.dtype] = set()

    def record(query: Tensor, key: Tensor, value: Tensor, terms: AttentionTerms, where: Documents) -> Tensor:
        dtypes.update(part.dtype for part in (query, key, value))
        return documents(query, key, value, terms, where)

    model = attending("llama", record)
    inputs = packed_inputs(packs_of(LENGTHS), CPU)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = called(model, inputs)
    assert dtypes == {torch.bfloat16}
    assert_near(found.float(), alone(make_model("llama"), inputs), 0.05)
    assert choose_packed_attention(make_model("llama"), dtype=torch.bfloat16) == "documents"


class LargestTensor(TorchDispatchMode):
    """Records how many numbers the largest tensor that is made has."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for part in found if isinstance(found, tuple | list) else [found]:
            if isinstance(part, Tensor):
                self.numel = max(self.numel, part.numel())
        return found


def test_no_tensor_over_pairs_of_tokens_is_ever_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_kernels, "ROWS", 32)
    num_tokens = 2048
    ends = torch.tensor([0, 1500, num_tokens], dtype=torch.int32)
    query, key, value = (torch.randn(num_tokens, heads, 8, requires_grad=True) for heads in (2, 1, 1))
    for terms in (AttentionTerms(0.3), AttentionTerms(0.3, None, 2.0), AttentionTerms(0.3, 64)):
        with LargestTensor() as largest:
            documents(query, key, value, terms, Documents(ends, 1500)).sum().backward()  # type: ignore[no-untyped-call]
        # 64 rows of scores at once, or 1024 rows of a window
        assert largest.numel <= max(2 * 32 * 1500, 1024 * (1024 + 64))
    with LargestTensor() as largest:
        block_mask(torch.tensor([0, 100_000, 131_072], dtype=torch.int32), 131_072, 4096)
    assert largest.numel <= 1024 * 1025  # pairs of blocks


def test_the_log_says_what_attends(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="workers.tuning.attention"):
        choose_packed_attention(make_model("llama"))
    assert "packed attention by documents" in caplog.text
