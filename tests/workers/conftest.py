"""Tiny models of every architecture, saved with a tokenizer, and documents for them."""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from needles.document import NeedleDocument
from needles.needle import Needle
from results.measurement import Measurement, candidate_key
from rope.factors import RescaleFactors
from rope.methods import METHODS
from workers.model import LoadedModel, load_model
from workers.scorer import ScoringFactory, Task

WINDOW = 64
VOCABULARY = 260
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": WINDOW,
    # Far above the usual 0.02: attention must look at some tokens more than at others for RoPE to matter
    "initializer_range": 0.3,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
}
# The classes know some of these by older names only, so all go through dictionaries
PARTIAL: dict[str, Any] = {"hidden_size": 64, "partial_rotary_factor": 0.5, "original_max_position_embeddings": WINDOW}
QUARTER: dict[str, Any] = {"hidden_size": 64, "rotary_pct": 0.25}
WIDE: dict[str, Any] = {"head_dim": 16}
SLIDING: dict[str, Any] = {"sliding_window": 48}
SOFTCAPPED: dict[str, Any] = {"attn_logit_softcapping": 5.0}
BY_TYPE: dict[str, Any] = {"layer_types": ["sliding_attention", "full_attention"]}
CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SIZES),
    "mistral": lambda: MistralConfig(**SIZES | SLIDING),
    "qwen2": lambda: Qwen2Config(**SIZES),
    "qwen3": lambda: Qwen3Config(**SIZES | WIDE),
    "phi3": lambda: Phi3Config(**SIZES | PARTIAL),
    "gpt_neox": lambda: GPTNeoXConfig(**SIZES | QUARTER),
    "gemma": lambda: GemmaConfig(**SIZES | WIDE),
    "gemma2": lambda: Gemma2Config(**SIZES | WIDE | SLIDING | SOFTCAPPED),
    "gemma3": lambda: Gemma3TextConfig(**SIZES | WIDE | SLIDING | BY_TYPE),
}


@pytest.fixture(params=list(CONFIGS))
def architecture(request: pytest.FixtureRequest) -> str:
    """Every architecture in turn."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def make_config() -> Callable[[str], PreTrainedConfig]:
    """Makes an architecture's tiny configuration."""
    return lambda name: CONFIGS[name]()


@pytest.fixture(scope="session")
def save_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[PreTrainedConfig], Path]:
    """Saves a model of any configuration, with random weights that depend on its shapes alone, and a tokenizer."""

    def save(config: PreTrainedConfig) -> Path:
        folder = tmp_path_factory.mktemp(config.model_type)
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(copy.deepcopy(config)).save_pretrained(folder)  # type: ignore[no-untyped-call]
        byte_tokenizer().save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def model_folder(save_model: Callable[[PreTrainedConfig], Path]) -> Callable[[str], Path]:
    """Folder of an architecture's tiny model, saved once."""
    return cache(lambda name: save_model(CONFIGS[name]()))


@pytest.fixture(scope="session")
def load(model_folder: Callable[[str], Path]) -> Callable[[str], LoadedModel]:
    """Loads an architecture's tiny model afresh, in float32 on the CPU."""
    return lambda name: load_model(str(model_folder(name)), dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def make_factors() -> Callable[..., RescaleFactors]:
    """Makes a method's factors for a loaded model, from its window of 64 tokens to 256."""

    def make(loaded: LoadedModel, method: str, temperature: float = 1.0) -> RescaleFactors:
        rotary_dim, base, *_ = loaded.geometry
        factors = METHODS[method](rotary_dim, base, original_length=WINDOW, target_length=4 * WINDOW)
        return factors.with_temperature(temperature)

    return make


@pytest.fixture(scope="session")
def documents() -> list[NeedleDocument]:
    """Four documents of 128 random tokens, twice the window, with answers of 3 to 6 tokens."""
    rng = np.random.default_rng(0)
    return [
        NeedleDocument(
            id=f"document-{number}",
            split="search",
            token_ids=rng.integers(0, 256, 2 * WINDOW).astype(np.int32),
            answer_start=2 * WINDOW - 3 - number,
            depth=number / 4,
            needle=Needle("numerous-kite", "6716097"),
            passage_id="random",
            passage_sha256="",
            sha256=str(number),
        )
        for number in range(4)
    ]


@pytest.fixture(scope="session")
def acting() -> Callable[[Callable[[str], object]], ScoringFactory]:
    """Makes a scoring without a model that does something for each document; nested, so that Ray sends its code."""

    def make(act: Callable[[str], object]) -> ScoringFactory:
        class ActingScoring:
            def __init__(self, documents: Sequence[NeedleDocument]) -> None:
                self.documents = {document.id: document for document in documents}

            def score(self, candidate: RescaleFactors, document_ids: Sequence[str]) -> list[Measurement]:
                return [self.measure(candidate, document_id) for document_id in document_ids]

            def measure(self, candidate: RescaleFactors, document_id: str) -> Measurement:
                start = time.perf_counter()
                act(document_id)
                document = self.documents[document_id]
                return Measurement(
                    candidate=candidate_key(candidate),
                    document=document_id,
                    split=document.split,
                    depth=document.depth,
                    sum_nll=1.0,
                    num_tokens=1,
                    seconds=time.perf_counter() - start,
                )

        return ActingScoring

    return make


@pytest.fixture(scope="session")
def tasks(make_factors: Callable[..., RescaleFactors], load: Callable[[str], LoadedModel]) -> list[Task]:
    """A task for each of the four documents."""
    factors = make_factors(load("llama"), "linear")
    return [Task(factors, (f"document-{number}",)) for number in range(4)]


@pytest.fixture(scope="session")
def input_ids() -> torch.Tensor:
    """Token ids, shape (1, 128)."""
    return torch.from_numpy(np.random.default_rng(1).integers(0, 256, (1, 2 * WINDOW)))


@pytest.fixture(scope="module")
def ray_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where Ray keeps its files and looks for clusters; a short name, since sockets have at most 107 characters."""
    folder = tmp_path_factory.mktemp("r")
    (folder / "ray").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", str(folder))
        patch.delenv("RAY_ADDRESS", raising=False)
        yield folder


@pytest.fixture(scope="module")
def ray_cluster(ray_folder: Path) -> Iterator[None]:
    """A Ray of two CPUs with files of its own."""
    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=0,
        include_dashboard=False,
        object_store_memory=80 * 2**20,
        _temp_dir=str(ray_folder),
    )
    yield
    ray.shutdown()


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, and three special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={character: index for index, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)  # type: ignore[no-untyped-call]
