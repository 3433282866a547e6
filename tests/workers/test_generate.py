"""Generation: drawn from the model's distribution, a row at a time, on any model, which is given back as it was."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import dispatch_model  # type: ignore[import-untyped]
from scipy.stats import chisquare
from torch import Tensor, nn
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel, LlamaConfig, PreTrainedModel
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

from rope.factors import RescaleFactors
from rope.methods import METHODS
from tests.workers.conftest import CONFIGS, SIZES, WINDOW
from tests.workers.trimming import from_config, state
from workers.decoding import Decoding, Row, choose_tokens
from workers.generate import Generation, Prompt, generate
from workers.geometry import rope_geometry
from workers.rope_patch import RopePatch

CPU = torch.device("cpu")
PROMPT = list(range(60, 100))
EOS: int = SIZES["eos_token_id"]


@pytest.fixture
def llama() -> PreTrainedModel:
    """A tiny LLaMA."""
    return from_config(CONFIGS["llama"]())


@pytest.fixture
def long() -> RescaleFactors:
    """Factors for it, 4 times its window."""
    return METHODS["yarn"](8, 10_000.0, original_length=WINDOW, target_length=4 * WINDOW)


def drawing(**changes: object) -> Decoding:
    return replace(Decoding(num_new_tokens=8, temperature=1.0, stop_token_ids=()), **changes)  # type: ignore[arg-type]


def tokens_of(generations: list[Generation]) -> list[list[int]]:
    return [generation.token_ids for generation in generations]


@torch.no_grad()
def warped_probabilities(model: PreTrainedModel, input_ids: Tensor, temperature: float, top_p: float) -> Tensor:
    """Probabilities of the next token as transformers' own warpers make them, shape (rows, vocabulary)."""
    logits = model(input_ids=input_ids).logits[:, -1]
    ids = input_ids.long()
    scores: Tensor = TopPLogitsWarper(top_p)(ids, TemperatureLogitsWarper(temperature)(ids, logits))
    return scores.double().softmax(dim=-1)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (2.5, 1.0), (2.0, 0.8)])
def test_pairs_of_tokens_are_drawn_from_the_models_distribution(
    temperature: float, top_p: float, long: RescaleFactors
) -> None:
    vocabulary, num_rows = 8, 8000
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    model = from_config(LlamaConfig(**SIZES | special | {"vocab_size": vocabulary}))
    prompt = [3, 4, 5, 6, 7]
    decoding = drawing(
        num_new_tokens=2, temperature=temperature, top_p=top_p, seed=list(range(num_rows)), batch_size=2000
    )
    found = np.array(tokens_of(generate(model, [prompt] * num_rows, decoding, long=long)))
    first_V = warped_probabilities(model, torch.tensor([prompt]), temperature, top_p)[0]
    continued = torch.tensor([[*prompt, token] for token in range(vocabulary)])
    second_VV = warped_probabilities(model, continued, temperature, top_p)
    expected = num_rows * (first_V[:, None] * second_VV).flatten().numpy()
    counts = np.bincount(found @ [vocabulary, 1], minlength=vocabulary**2)
    assert counts[expected == 0].sum() == 0
    common = expected >= 5  # below, the statistic is not chi-square; together they are one class
    rare = [[array[~common & (expected > 0)].sum()] for array in (counts, expected)]
    classes = [np.concatenate([array[common], few]) for array, few in zip((counts, expected), rare, strict=True)]
    used = classes[1] > 0
    assert common.sum() >= 8
    assert chisquare(classes[0][used], classes[1][used]).pvalue > 1e-3


def test_top_p_leaves_the_tokens_that_transformers_leaves() -> None:
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(0))
    for top_p in (0.01, 0.3, 0.9, 0.999):
        warped = TopPLogitsWarper(top_p)(torch.zeros(1, 1, dtype=torch.long), logits)
        rows = [Row([number], 0, CPU) for number in range(3000)]
        found = choose_tokens(logits.expand(3000, -1), rows, drawing(top_p=top_p))
        assert set(found.tolist()) <= set(warped[0].isfinite().nonzero()[:, 0].tolist())


@pytest.mark.parametrize(("top_p", "num_tokens"), [(0.25, 1), (0.5, 2), (0.51, 3), (0.75, 3), (1.0, 4)])
def test_the_nucleus_is_the_fewest_tokens_that_sum_to_top_p(top_p: float, num_tokens: int) -> None:
    rows = [Row([number], 0, CPU) for number in range(200)]
    found = choose_tokens(torch.zeros(200, 4), rows, drawing(top_p=top_p))
    assert len(set(found.tolist())) == num_tokens


def test_the_smallest_temperature_and_the_smallest_nucleus_take_the_likeliest_token() -> None:
    logits = torch.randn(20, 50, generator=torch.Generator().manual_seed(0)) * 30
    rows = [Row([number], 0, CPU) for number in range(20)]
    for decoding in (drawing(temperature=1e-30), drawing(top_p=1e-30), drawing(temperature=0.0)):
        assert torch.equal(choose_tokens(logits, rows, decoding), logits.argmax(dim=-1))


def test_draws_are_a_rows_own_alone_or_in_any_batch_and_order(llama: PreTrainedModel, long: RescaleFactors) -> None:
    prompts: list[list[int]] = [PROMPT, PROMPT[:7], PROMPT[3:30], PROMPT[::-1], PROMPT[:7:-1]]
    decoding = drawing(num_new_tokens=40, seed=7)
    together = tokens_of(generate(llama, prompts, decoding, long=long))
    assert together == tokens_of(generate(llama, prompts, decoding, long=long))
    assert together == [tokens_of(generate(llama, [prompt], decoding, long=long))[0] for prompt in prompts]
    assert together[::-1] == tokens_of(generate(llama, prompts[::-1], replace(decoding, batch_size=2), long=long))
    assert together != tokens_of(generate(llama, prompts, replace(decoding, seed=8), long=long))


def test_several_samples_of_one_prompt_have_a_seed_each(llama: PreTrainedModel, long: RescaleFactors) -> None:
    alike = tokens_of(generate(llama, [PROMPT] * 3, drawing(seed=1), long=long))
    assert alike[0] == alike[1] == alike[2]
    unlike = tokens_of(generate(llama, [PROMPT] * 3, drawing(seed=[1, 2, 3]), long=long))
    assert unlike[0] == alike[0]
    assert len({tuple(tokens) for tokens in unlike}) == 3


def test_no_global_chance_is_used_or_moved(llama: PreTrainedModel, long: RescaleFactors) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = generate(llama, [PROMPT], drawing(), long=long)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert generate(llama, [PROMPT], drawing(), long=long) == first


@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_prefill_in_chunks_gives_the_tokens_of_a_whole_one(name: str) -> None:
    model = from_config(CONFIGS[name]())
    rotary_dim, base, *_ = rope_geometry(model.config)
    long = METHODS["yarn"](rotary_dim, base, original_length=WINDOW, target_length=4 * WINDOW)
    prompts = [list(range(length)) for length in (2 * WINDOW, WINDOW + 21, WINDOW - 1, 1)]
    whole = generate(model, prompts, drawing(num_new_tokens=6), long=long)
    for chunk_tokens in (16, 100, 300):
        assert generate(model, prompts, drawing(num_new_tokens=6, chunk_tokens=chunk_tokens), long=long) == whole


def test_the_end_is_a_stop_token_or_the_number_of_tokens(llama: PreTrainedModel, long: RescaleFactors) -> None:
    (whole,) = generate(llama, [PROMPT], drawing(), long=long)
    assert whole.ended == "length"
    assert len(whole.token_ids) == 8
    stop = whole.token_ids[4]
    first = whole.token_ids.index(stop)
    (stopped,) = generate(llama, [PROMPT], drawing(stop_token_ids=[stop]), long=long)
    assert stopped == Generation(whole.token_ids[: first + 1], "stop")
    (last,) = generate(llama, [PROMPT], drawing(num_new_tokens=first + 1, stop_token_ids=[stop]), long=long)
    assert last.ended == "stop"


@pytest.mark.parametrize("as_list", [True, False])
def test_without_stop_tokens_those_of_the_model_are_taken(
    as_list: bool, llama: PreTrainedModel, long: RescaleFactors
) -> None:
    (whole,) = generate(llama, [PROMPT], drawing(), long=long)
    assert llama.generation_config is not None
    llama.generation_config.eos_token_id = [EOS, whole.token_ids[0]] if as_list else whole.token_ids[0]
    (found,) = generate(llama, [PROMPT], drawing(stop_token_ids=None), long=long)
    assert found == Generation(whole.token_ids[:1], "stop")
    llama.generation_config.eos_token_id = None
    assert generate(llama, [PROMPT], drawing(stop_token_ids=None), long=long) == [whole]


def test_prompts_may_be_arrays_and_no_prompts_give_nothing(llama: PreTrainedModel, long: RescaleFactors) -> None:
    expected = generate(llama, [PROMPT], drawing(), long=long)
    assert generate(llama, [np.array(PROMPT, dtype=np.int32)], drawing(), long=long) == expected
    assert generate(llama, [], drawing(), long=long) == []


@contextmanager
def failing_at(model: PreTrainedModel, num_tokens: int) -> Iterator[None]:
    """Break the model's forward once it has so many tokens in its cache."""

    def fail(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        cache = kwargs["past_key_values"]
        assert isinstance(cache, DynamicCache)
        if cache.get_seq_length() >= num_tokens:
            raise KeyboardInterrupt

    hook = model.register_forward_pre_hook(fail, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.parametrize("num_tokens", [WINDOW - 2, WINDOW + 2, 1000])
def test_the_model_is_given_back_as_it_was_bit_for_bit_after_an_interruption_too(
    num_tokens: int, llama: PreTrainedModel, long: RescaleFactors
) -> None:
    llama.train()
    llama.model.layers[0].eval()
    buffers = {name: buffer.clone() for name, buffer in llama.named_buffers()}
    before = state(llama)
    decoding = drawing(num_new_tokens=10)
    if num_tokens < 1000:
        with failing_at(llama, num_tokens), pytest.raises(KeyboardInterrupt):
            generate(llama, [PROMPT + PROMPT[:20]], decoding, long=long, short=replace(long, num_start_tokens=2))
    else:
        generate(llama, [PROMPT + PROMPT[:20]], decoding, long=long, short=replace(long, num_start_tokens=2))
    assert state(llama) == before
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in llama.named_buffers())


def test_a_model_in_several_places_generates_the_same(
    llama: PreTrainedModel, long: RescaleFactors, tmp_path: Path
) -> None:
    prompts = [PROMPT + PROMPT[:20], PROMPT]
    expected = generate(llama, prompts, drawing(), long=long)
    parts = ["embed_tokens", *(f"layers.{number}" for number in range(2)), "norm", "rotary_emb"]
    places = {f"model.{part}": "disk" if part == "layers.1" else "cpu" for part in parts}
    spread = dispatch_model(llama, places | {"lm_head": "cpu"}, offload_dir=str(tmp_path))
    assert next(spread.get_submodule("model.layers.1").parameters()).is_meta
    assert generate(spread, prompts, drawing(), long=long) == expected


def test_in_bfloat16_a_row_has_the_tokens_of_whole_forwards(llama: PreTrainedModel, long: RescaleFactors) -> None:
    llama.bfloat16()
    prompt = PROMPT + PROMPT[:20]
    (found,) = generate(llama, [prompt], drawing(temperature=0.0), long=long)
    with RopePatch(llama) as patch:
        for number, token in enumerate(found.token_ids):
            token_ids = prompt + found.token_ids[:number]
            if len(token_ids) > WINDOW:
                patch.install(long)
            logits_V = llama(input_ids=torch.tensor([token_ids])).logits[0, -1].float()
            # Two logits of 8 bits each, after sums in another order
            assert logits_V[token] >= logits_V.max() - 2**-6 * logits_V.abs().max()


def test_dropout_is_off(llama: PreTrainedModel, long: RescaleFactors) -> None:
    expected = generate(llama, [PROMPT], drawing(), long=long)
    llama.config.attention_dropout = 0.9
    for module in llama.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.9  # type: ignore[assignment]
    llama.train()
    assert generate(llama, [PROMPT], drawing(), long=long) == expected


def test_logits_that_are_no_numbers_end_their_row_alone(llama: PreTrainedModel, long: RescaleFactors) -> None:
    expected = generate(llama, [PROMPT], drawing(), long=long)
    embedding = llama.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    broken = next(token for token in range(256) if token not in PROMPT + expected[0].token_ids)
    embedding.weight.data[broken] = torch.nan
    for temperature, prompts in ((1.0, [[broken, 6, 7], PROMPT]), (0.0, [[broken, 6, 7]])):
        found = generate(llama, prompts, drawing(temperature=temperature), long=long)
        assert found[0] == Generation([], "not finite")
        assert found[1:] == expected[: len(prompts) - 1]


def test_lengths_beyond_the_factors_target_are_warned_of_and_served(
    llama: PreTrainedModel, long: RescaleFactors, caplog: pytest.LogCaptureFixture
) -> None:
    near, far = ([7] * length for length in (4 * WINDOW - 8, 4 * WINDOW - 7))
    with caplog.at_level(logging.WARNING, logger="workers.generate"):
        generate(llama, [near], drawing(), long=long)
        assert not caplog.messages
        (found,) = generate(llama, [far], drawing(), long=long)
    assert len(found.token_ids) == 8
    assert caplog.messages == [
        "a prompt and what follows it may reach 257 tokens, the factors are for 256: expect worse beyond"
    ]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([PROMPT, []], r"prompt 1 must be a list of at least one token id, got shape \(0,\)"),
        ([[PROMPT]], r"prompt 0 must be a list of at least one token id, got shape \(1, 40\)"),
        (PROMPT, r"prompt 0 must be a list of at least one token id, got shape \(\) of int64"),
        ([[0.5, 1.0]], r"prompt 0 must be a list of at least one token id, got shape \(2,\) of float64"),
        ([[0, 260]], "prompt 0 must have token ids from 0 to 259, got 0 to 260. Was it tokenized for another model?"),
        ([[-1, 5]], "prompt 0 must have token ids from 0 to 259, got -1 to 5"),
    ],
)
def test_prompts_that_are_none_are_refused(
    prompts: list[Prompt], message: str, llama: PreTrainedModel, long: RescaleFactors
) -> None:
    with pytest.raises(ValueError, match=message):
        generate(llama, prompts, drawing(), long=long)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_new_tokens": 0}, "num_new_tokens must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"chunk_tokens": -1}, "chunk_tokens must be at least 1, got -1"),
        ({"temperature": -0.1}, "temperature must be a finite number of at least 0, got -0.1"),
        ({"temperature": float("nan")}, "temperature must be a finite number of at least 0, got nan"),
        ({"temperature": float("inf")}, "temperature must be a finite number of at least 0, got inf"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1, got 1.5"),
        ({"top_p": float("nan")}, "top_p must be above 0 and at most 1, got nan"),
    ],
)
def test_decoding_that_cannot_be_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        drawing(**changes)


def test_a_seed_per_row_is_asked_for_where_there_are_several(llama: PreTrainedModel, long: RescaleFactors) -> None:
    with pytest.raises(ValueError, match="seed must be one number or 2, one per prompt, got 3"):
        generate(llama, [PROMPT, PROMPT], drawing(seed=[1, 2, 3]), long=long)


@pytest.mark.parametrize("is_short", [True, False])
def test_factors_of_another_model_are_refused_before_anything_is_read(
    is_short: bool, llama: PreTrainedModel, long: RescaleFactors
) -> None:
    other = METHODS["yarn"](8, 5e5, original_length=WINDOW, target_length=4 * WINDOW)
    before = state(llama)
    long, short = (long, other) if is_short else (other, long)
    with (
        failing_at(llama, 0),
        pytest.raises(
            ValueError, match=r"factors must be for rotary_dim 8 and base 10000 .* got rotary_dim 8 and base"
        ),
    ):
        generate(llama, [PROMPT], drawing(), long=long, short=short)
    assert state(llama) == before


def test_an_original_length_without_tokens_is_refused(llama: PreTrainedModel, long: RescaleFactors) -> None:
    with pytest.raises(ValueError, match="original_length must be at least 1 token, got 0"):
        generate(llama, [PROMPT], drawing(), long=long, original_length=0)


def test_a_model_that_does_not_rotate_is_refused(long: RescaleFactors) -> None:
    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_head=4, n_layer=2, vocab_size=260))
    with pytest.raises(ValueError, match="the model must have rotary position embeddings"):
        generate(model, [PROMPT], drawing(), long=long)


def test_a_model_that_switches_by_itself_inside_the_window_is_refused(long: RescaleFactors) -> None:
    config = LlamaConfig(**SIZES | {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}})
    model = from_config(config)
    with pytest.raises(ValueError, match="original_length must be at most 64 for a model that was saved with dynamic"):
        generate(model, [PROMPT], drawing(), long=long, original_length=WINDOW + 1)
    assert generate(model, [PROMPT], drawing(), long=long)[0].ended == "length"
