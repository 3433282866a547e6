"""Operations of a document's score, against arithmetic by hand, torch's counter and the attention that models pay."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3MoeConfig,
)

from tests.workers.conftest import CONFIGS, SIZES, WIDE
from workers.flops import document_flops

NUM_TOKENS, NUM_KEPT = 96, 7
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 40}
LATENT: dict[str, Any] = {
    "q_lora_rank": 12,
    "kv_lora_rank": 20,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 8,
    "v_head_dim": 14,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
WITH_EXPERTS: dict[str, Callable[[], PreTrainedConfig]] = {
    "mixtral": lambda: MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2, sliding_window=None),
    "qwen3_moe": lambda: Qwen3MoeConfig(**SIZES | WIDE | EXPERTS, num_experts=8),
    "deepseek_v3": lambda: DeepseekV3Config(**SIZES | EXPERTS | LATENT),
    "mistral, window of 5": lambda: MistralConfig(**SIZES | {"sliding_window": 5}),
}
ALL = CONFIGS | WITH_EXPERTS
HEAD_DIMS = {"phi3": 16, "gpt_neox": 16, "qwen3": 16, "qwen3_moe": 16, "gemma": 16, "gemma2": 16, "gemma3": 16}
"""Those that are not hidden_size 32 / 4 heads."""


class Counted(NamedTuple):
    """What was seen in a plain forward."""

    by_module: dict[str, int]
    """FLOPs of products with weights, by the module's path."""
    num_pairs: list[int]
    """Pairs of a query and a key that got a share of its attention, in the first head of each layer."""
    num_pairs_kept: int
    """The same of the last queries in the last layer."""


def make_model(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    # With weights as small as these no share of the attention underflows
    config.initializer_range = 0.02
    options = {"attn_implementation": "eager", "experts_implementation": "eager"}
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, **options)  # type: ignore[no-untyped-call]
    model.eval().requires_grad_(False)  # type: ignore[no-untyped-call]
    return model


def products(counter: FlopCounterMode, path: str) -> int:
    """Return the FLOPs of products with weights below a module."""
    counts = {str(name): flops for name, flops in counter.get_flop_counts()[path].items()}
    return counts.get("aten.mm", 0) + counts.get("aten.addmm", 0)


def counted(model: PreTrainedModel) -> Counted:
    ids = torch.randint(0, 256, (1, NUM_TOKENS), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        output = model(input_ids=ids, use_cache=False, output_attentions=True)
        with FlopCounterMode(display=False) as counter:
            model(input_ids=ids, use_cache=False)
    is_seen = [attention[0, 0] > 0 for attention in output.attentions]
    root = type(model).__name__
    return Counted(
        {name.removeprefix(f"{root}."): products(counter, name) for name in counter.get_flop_counts()},
        [int(seen.sum()) for seen in is_seen],
        int(is_seen[-1][-NUM_KEPT:].sum()),
    )


@pytest.fixture(scope="module", params=list(ALL))
def named(request: pytest.FixtureRequest) -> tuple[str, PreTrainedModel, Counted]:
    model = make_model(ALL[request.param]())
    return request.param, model, counted(model)


def flops_per_pair(name: str) -> int:
    """Scores and output, a multiplication and an addition each, in 4 heads."""
    return 2 * 4 * ((18 + 14) if name == "deepseek_v3" else 2 * HEAD_DIMS.get(name, 8))


def test_llama_3_8b_at_128k_by_hand() -> None:
    with torch.device("meta"):
        sizes: dict[str, Any] = {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "vocab_size": 128256,
        }
        model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=32, num_key_value_heads=8))
    key_value, query_output, mlp, head = 2 * 4096 * 1024, 2 * 4096 * 4096, 3 * 4096 * 14336, 4096 * 128256
    num_tokens = 131072
    linear = 2 * num_tokens * (31 * (key_value + query_output + mlp) + key_value)
    linear += 2 * 8 * (query_output + mlp + head)
    pairs = 31 * (num_tokens * (num_tokens + 1) // 2) + (8 * num_tokens - (0 + 1 + 2 + 3 + 4 + 5 + 6 + 7))
    attention = 4 * 128 * 32 * pairs
    assert document_flops(model, num_tokens=num_tokens, num_kept=8) == pytest.approx(linear + attention, rel=1e-12)
    # 1.77 PFLOP in matrices and 4.36 in attention, by a pocket calculator
    assert linear == pytest.approx(1.7746e15, rel=1e-4)
    assert attention == pytest.approx(4.3629e15, rel=1e-4)
    both = document_flops(model, num_tokens=num_tokens, num_kept=8, with_gradient=True)
    assert both == pytest.approx(2 * linear + 3.5 * attention, rel=1e-12)


def test_a_forward_that_keeps_every_position_needs_what_torch_counts_and_the_pairs_that_attend(
    named: tuple[str, PreTrainedModel, Counted],
) -> None:
    name, model, found = named
    expected = found.by_module[type(model).__name__] + flops_per_pair(name) * sum(found.num_pairs)
    assert document_flops(model, num_tokens=NUM_TOKENS, num_kept=NUM_TOKENS) == pytest.approx(expected, rel=1e-12)


def test_the_last_layer_costs_keys_and_values_everywhere_and_all_else_at_the_kept_positions(
    named: tuple[str, PreTrainedModel, Counted],
) -> None:
    name, model, found = named
    layers = "gpt_neox.layers" if name == "gpt_neox" else "model.layers"
    last = f"{layers}.1"
    # Of the fused ones by hand: 2 of 4 + 2 + 2 heads for Phi-3's keys and values each; 1 of 3 each in GPT-NeoX
    share = {"qkv_proj": 1 / 2, "query_key_value": 2 / 3}
    share |= dict.fromkeys(("k_proj", "v_proj", "kv_a_proj_with_mqa", "kv_b_proj"), 1.0)
    key_value = sum(
        share.get(path.rpartition(".")[2], 0.0) * flops
        for path, flops in found.by_module.items()
        if path.startswith(f"{last}.")
    )
    head = found.by_module["lm_head"]
    first = found.by_module[f"{layers}.0"]
    kept = (found.by_module[last] - key_value + head) * NUM_KEPT / NUM_TOKENS
    pairs = found.num_pairs[0] + found.num_pairs_kept
    expected = first + key_value + kept + flops_per_pair(name) * pairs
    assert document_flops(model, num_tokens=NUM_TOKENS, num_kept=NUM_KEPT) == pytest.approx(expected, rel=1e-12)


def test_linear_layers_cost_twice_with_a_gradient_as_torch_counts_them(
    named: tuple[str, PreTrainedModel, Counted],
) -> None:
    name, model, found = named
    ids = torch.zeros((1, NUM_TOKENS), dtype=torch.int64)
    embedded = model.get_input_embeddings()(ids).requires_grad_()
    with FlopCounterMode(display=False) as counter:
        model(inputs_embeds=embedded, use_cache=False).logits.sum().backward()
    linear = products(counter, "Global")
    flops = document_flops(model, num_tokens=NUM_TOKENS, num_kept=NUM_TOKENS, with_gradient=True)
    expected = linear + 3.5 * flops_per_pair(name) * sum(found.num_pairs)
    assert flops == pytest.approx(expected, rel=1e-12)


def test_a_tied_head_costs_as_much_as_one_of_its_own() -> None:
    flops = [
        document_flops(make_model(LlamaConfig(**SIZES, tie_word_embeddings=tied)), num_tokens=64, num_kept=8)
        for tied in (True, False)
    ]
    assert flops[0] == flops[1]


def test_a_model_whose_layers_cannot_be_told_is_refused() -> None:
    model = make_model(CONFIGS["llama"]())
    model.config.num_hidden_layers = 3
    with pytest.raises(ValueError, match=r"^LlamaForCausalLM has no list of 3 layers$"):
        document_flops(model, num_tokens=64, num_kept=8)
