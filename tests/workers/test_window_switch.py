"""The window switch: cached tokens are those of whole forwards, in any batch, wherever a row outgrows the window."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rope.factors import RescaleFactors
from rope.identity import none_factors
from tests.workers.architectures import REFUSED, TRIMMABLE
from tests.workers.conftest import CONFIGS, WINDOW
from tests.workers.trimming import from_config
from workers.decoding import Decoding, Row, choose_tokens
from workers.generate import generate
from workers.model import LoadedModel
from workers.rope_patch import RopePatch

Load = Callable[[str], LoadedModel]
MakeFactors = Callable[..., RescaleFactors]
Prompts = list[list[int]]
Logits = Callable[[list[int]], Tensor]

TEMPERATURE = 1.125
CPU = torch.device("cpu")
# A state in place of keys and values, attention in chunks, values of fewer dimensions than keys, experts
OTHERS = ["qwen3_next", "llama4", "deepseek_v3", "gpt_oss"]


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    """A tiny LLaMA, with another attention than those that it is compared with."""
    model = from_config(CONFIGS["llama"]())
    model.set_attn_implementation("sdpa")
    return model


@pytest.fixture(scope="module")
def long(llama: PreTrainedModel) -> RescaleFactors:
    """Factors for it, 4 times its window."""
    return factors_for(llama)


def factors_for(model: PreTrainedModel) -> RescaleFactors:
    """Factors that grow with the pair, and an attention temperature."""
    rotary_dim, base, *_ = RopePatch(model).geometry
    unscaled = none_factors(rotary_dim, base, original_length=WINDOW, target_length=4 * WINDOW)
    values = np.geomspace(1.5, 6.0, rotary_dim // 2)
    return unscaled.with_values(values, method="growing").with_temperature(TEMPERATURE)


def unscaled(factors: RescaleFactors, temperature: float) -> RescaleFactors:
    ones = [1.0] * len(factors.values)
    return factors.with_values(ones, method="none").with_temperature(temperature)


def prompts_of(*lengths: int, seed: int = 0) -> Prompts:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, length).tolist() for length in lengths]


def uncached(prompt: list[int], seed: int, decoding: Decoding, logits: Logits) -> tuple[list[int], str]:
    """Decode by a forward over the whole sequence for each token."""
    row = Row(prompt, seed, CPU)
    tokens: list[int] = []
    while len(tokens) < decoding.num_new_tokens:
        tokens += choose_tokens(logits(prompt + tokens), [row], decoding).tolist()
        if tokens[-1] in (decoding.stop_token_ids or ()):
            return tokens, "stop"
    return tokens, "length"


@torch.no_grad()
def last_logits(model: PreTrainedModel, token_ids: list[int]) -> Tensor:
    logits: Tensor = model(input_ids=torch.tensor([token_ids]), use_cache=False).logits
    return logits[:, -1]


def transformers_tokens(model: Any, prompts: Prompts, num_new_tokens: int) -> Prompts:
    """What transformers' own greedy decoding writes after prompts of one length."""
    ids = model.generate(torch.tensor(prompts), max_new_tokens=num_new_tokens, do_sample=False, eos_token_id=None)
    tokens: Prompts = ids[:, len(prompts[0]) :].tolist()
    return tokens


def native_longrope(model: PreTrainedModel, long: RescaleFactors, attention_factor: float) -> PreTrainedModel:
    """The same weights with transformers' own scaling, which chooses by the length of what a forward reads."""
    config = type(model.config)(**model.config.to_dict())
    config.rope_parameters = {
        **{key: value for key, value in model.config.rope_parameters.items() if key != "rope_type"},
        "rope_type": "longrope",
        "short_factor": [1.0] * len(long.values),
        "long_factor": list(long.values),
        "factor": long.scale,
        "attention_factor": attention_factor,
        "original_max_position_embeddings": WINDOW,
    }
    native = from_config(config)
    native.load_state_dict(model.state_dict())
    return native


def test_tokens_are_those_of_transformers_own_longrope_without_a_cache_over_200_random_crossings(
    llama: PreTrainedModel, long: RescaleFactors
) -> None:
    native = native_longrope(llama, long, TEMPERATURE)
    rng = np.random.default_rng(0)
    num_crossings = num_stopped = 0
    while num_crossings < 200:
        lengths = rng.integers(WINDOW - 8, WINDOW + 3, rng.integers(1, 7)).tolist()
        prompts = prompts_of(*lengths, seed=int(rng.integers(2**32)))
        seeds = rng.integers(2**32, size=len(prompts)).tolist()
        decoding = Decoding(
            num_new_tokens=int(rng.integers(1, 15)),
            temperature=float(rng.choice([0.0, 0.5, 2.0])),
            top_p=float(rng.choice([0.5, 1.0])),
            seed=seeds,
            stop_token_ids=rng.integers(0, 256, rng.integers(0, 8)).tolist(),
            batch_size=int(rng.integers(1, 7)),
            chunk_tokens=int(rng.integers(1, 400)),
        )
        # Longrope of transformers has one attention factor for both windows
        found = generate(llama, prompts, decoding, long=long, short=unscaled(long, TEMPERATURE))
        for prompt, seed, (tokens, ended) in zip(prompts, seeds, found, strict=True):
            assert (tokens, ended) == uncached(prompt, seed, decoding, lambda ids: last_logits(native, ids))
            num_crossings += len(prompt) <= WINDOW < len(prompt) + len(tokens) - 1
            num_stopped += ended == "stop"
    assert num_stopped > 20


def test_tokens_are_those_of_transformers_own_generate_where_it_switches_itself() -> None:
    phi3 = from_config(CONFIGS["phi3"]())
    long = factors_for(phi3)
    native = native_longrope(phi3, long, TEMPERATURE)
    for prompt in prompts_of(WINDOW - 9, WINDOW - 1, WINDOW, WINDOW + 1):
        expected = transformers_tokens(native, [prompt], 16)
        decoding = Decoding(num_new_tokens=16, stop_token_ids=())
        (found,) = generate(phi3, [prompt], decoding, long=long, short=unscaled(long, TEMPERATURE))
        assert [found.token_ids] == expected


@pytest.mark.parametrize("name", [*CONFIGS, *OTHERS])
def test_every_architecture_switches_at_every_offset_alone_and_in_a_batch_of_unlike_lengths(name: str) -> None:
    model = from_config((TRIMMABLE | REFUSED)[name]())
    long = factors_for(model)
    prompts = prompts_of(WINDOW - 24, *range(WINDOW - 4, WINDOW + 3))
    for temperature in (0.0, 1.0) if name in CONFIGS else (1.0,):
        decoding = Decoding(num_new_tokens=5, temperature=temperature, stop_token_ids=(), chunk_tokens=150)
        with RopePatch(model) as patch:

            def logits(token_ids: list[int], patch: RopePatch = patch) -> Tensor:
                # Attention temperature and all: inside the window the model is the one that was loaded
                if len(token_ids) > WINDOW:
                    patch.install(long)
                else:
                    patch.restore()
                return last_logits(model, token_ids)

            expected = [uncached(prompt, 0, decoding, logits)[0] for prompt in prompts]
        together = generate(model, prompts, decoding, long=long)
        assert [row.token_ids for row in together] == expected
        alone = [generate(model, [prompt], decoding, long=long)[0].token_ids for prompt in prompts]
        assert alone == expected


def test_the_switch_is_seen_in_the_tokens(llama: PreTrainedModel, long: RescaleFactors) -> None:
    # What the other tests compare would be worth nothing if any factors gave the same tokens
    decoding = Decoding(num_new_tokens=12, stop_token_ids=())
    prompts = prompts_of(*range(WINDOW - 8, WINDOW))
    right = generate(llama, prompts, decoding, long=long)
    never = generate(llama, prompts, decoding, long=long, original_length=4 * WINDOW)
    always = generate(llama, prompts, decoding, long=long, short=long)
    late = generate(llama, prompts, decoding, long=long, original_length=WINDOW + 1)
    for other in (never, always, late):
        assert sum(a != b for a, b in zip(right, other, strict=True)) >= 4


def test_short_factors_have_an_attention_temperature_and_start_tokens_of_their_own(
    llama: PreTrainedModel, long: RescaleFactors
) -> None:
    short = replace(long.with_values([1.1] * len(long.values), method="short"), num_start_tokens=3)
    short, long = short.with_temperature(0.9), replace(long, num_start_tokens=7)
    prompts = prompts_of(WINDOW - 30, WINDOW - 3, WINDOW)
    decoding = Decoding(num_new_tokens=8, stop_token_ids=(), temperature=1.0)
    with RopePatch(llama) as patch:

        def logits(token_ids: list[int]) -> Tensor:
            patch.install(long if len(token_ids) > WINDOW else short)
            return last_logits(llama, token_ids)

        expected = [uncached(prompt, 0, decoding, logits)[0] for prompt in prompts]
    found = generate(llama, prompts, decoding, long=long, short=short)
    assert [row.token_ids for row in found] == expected


def test_inside_the_window_the_tokens_are_those_of_the_model_alone(
    llama: PreTrainedModel, long: RescaleFactors
) -> None:
    prompts = prompts_of(WINDOW - 20, WINDOW - 20)
    decoding = Decoding(num_new_tokens=20, stop_token_ids=())
    found = generate(llama, prompts, decoding, long=long)
    assert [row.token_ids for row in found] == transformers_tokens(llama, prompts, 20)


@pytest.fixture
def read(llama: PreTrainedModel) -> Iterator[list[tuple[int, int]]]:
    """Shapes of what the model reads, forward by forward."""
    shapes: list[tuple[int, int]] = []

    def note(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, Any]) -> None:
        shapes.append(tuple(kwargs["input_ids"].shape))

    hook = llama.register_forward_pre_hook(note, with_kwargs=True)
    yield shapes
    hook.remove()


def test_a_row_is_read_anew_once_and_no_more(
    llama: PreTrainedModel, long: RescaleFactors, read: list[tuple[int, int]]
) -> None:
    decoding = Decoding(num_new_tokens=20, stop_token_ids=(), chunk_tokens=1000)
    generate(llama, prompts_of(WINDOW - 2), decoding, long=long)
    # 62 tokens, two more, all 65 with the long factors, and one by one to the 19th; the 20th is never read
    assert read == [(1, WINDOW - 2), (1, 1), (1, 1), (1, WINDOW + 1), *[(1, 1)] * 16]


def test_equal_factors_for_both_windows_need_no_second_reading(
    llama: PreTrainedModel, long: RescaleFactors, read: list[tuple[int, int]]
) -> None:
    decoding = Decoding(num_new_tokens=6, stop_token_ids=())
    generate(llama, prompts_of(WINDOW - 2), decoding, long=long, short=long)
    assert read == [(1, WINDOW - 2), *[(1, 1)] * 5]


def test_a_prompt_of_the_whole_window_gets_its_first_token_from_the_short_factors(
    llama: PreTrainedModel, long: RescaleFactors, read: list[tuple[int, int]]
) -> None:
    for length, expected in ((WINDOW, [(1, WINDOW)]), (WINDOW + 1, [(1, WINDOW + 1)])):
        read.clear()
        (prompt,) = prompts_of(length)
        (row,) = generate(llama, [prompt], Decoding(num_new_tokens=1, stop_token_ids=()), long=long)
        assert read == expected
        with RopePatch(llama) as patch:
            if length > WINDOW:
                patch.install(long)
            assert row.token_ids == [int(last_logits(llama, prompt).argmax())]


@pytest.mark.parametrize("lengths", [(40, 40, 40), (10, 33, 90)])
def test_no_forward_reads_more_tokens_than_it_may(
    llama: PreTrainedModel, long: RescaleFactors, read: list[tuple[int, int]], lengths: Sequence[int]
) -> None:
    generate(llama, prompts_of(*lengths), Decoding(num_new_tokens=3, chunk_tokens=16), long=long)
    assert max(num_rows * num_tokens for num_rows, num_tokens in read) <= 16


def test_rows_that_ended_are_read_no_more(
    llama: PreTrainedModel, long: RescaleFactors, read: list[tuple[int, int]]
) -> None:
    prompts = prompts_of(20, 20, 20, 20)
    whole = generate(llama, prompts, Decoding(num_new_tokens=12, stop_token_ids=()), long=long)
    stop = whole[0].token_ids[3]
    read.clear()
    found = generate(llama, prompts, Decoding(num_new_tokens=12, stop_token_ids=[stop]), long=long)
    lengths = [len(row.token_ids) for row in found]
    assert lengths[0] <= 4
    # Each generated token but a row's last is read once
    assert list(accumulate(num_rows for num_rows, _ in read[1:]))[-1] == sum(lengths) - len(lengths)
