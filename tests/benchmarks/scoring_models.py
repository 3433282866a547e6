"""The models and documents of the benchmark `scoring`: published shapes with random weights, or a model of files.

Shapes: T tokens.
"""

import ctypes
import gc
from collections.abc import Mapping
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    LlamaConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)
from transformers.utils.import_utils import is_flash_attn_2_available

from needles.document import NeedleDocument
from needles.needle import Needle
from rope.factors import RescaleFactors
from rope.identity import none_factors
from workers.geometry import rope_geometry
from workers.model import LoadedModel, load_model
from workers.model_files import ModelFiles
from workers.precision import Precision
from workers.rope_patch import RopePatch
from workers.scorer import failure_reason

NUM_ANSWER_TOKENS = 8
PROBE_LENGTHS: Mapping[str, int] = {"cpu": 64, "cuda": 4096}
"""Tokens of the document that a model reads first, so that no kernel is loaded under the clock."""


class Shape(NamedTuple):
    """A model's shape."""

    config: type[PreTrainedConfig]
    settings: Mapping[str, Any]


SHAPES: Mapping[str, Shape] = {
    # meta-llama/Meta-Llama-3-8B, config.json
    "LLaMA3-8B": Shape(
        LlamaConfig,
        {
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
        },
    ),
    # microsoft/Phi-3-mini-4k-instruct, config.json, without its sliding window of 2047, which the 128k model has not
    "Phi-3-mini": Shape(
        Phi3Config,
        {
            "vocab_size": 32064,
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
            "sliding_window": None,
        },
    ),
    # Qwen/Qwen2.5-7B, config.json
    "Qwen2.5-7B": Shape(
        Qwen2Config,
        {
            "vocab_size": 152064,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
            "use_sliding_window": False,
        },
    ),
    # HuggingFaceTB/SmolLM2-135M, config.json
    "SmolLM2-135M": Shape(
        LlamaConfig,
        {
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
            "tie_word_embeddings": True,
        },
    ),
}


class Job(NamedTuple):
    """What a process scores, and how."""

    way: str
    model: str
    """Name of a shape, or a path."""
    gguf_file: str | None
    num_layers: int | None
    """Layers of a shape; None for all."""
    device: str
    """cpu or cuda."""
    dtype: Precision
    """Precision of `ropewalk` and `labels`."""


def shape_config(job: Job) -> PreTrainedConfig:
    """Return the configuration of a shape."""
    shape = SHAPES[job.model]
    cut = {} if job.num_layers is None else {"num_hidden_layers": job.num_layers}
    return shape.config(**{**shape.settings, **cut, "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2})


def random_model(config: PreTrainedConfig, *, dtype: torch.dtype, device: str, attention: str) -> PreTrainedModel:
    """Return a model of random weights, made where it runs; the same in every precision up to rounding.

    Matrices keep the scale of what goes through them, so that no half precision overflows. What a layer adds is small
    beside what it reads, or rounding would grow from layer to layer. And the norms before the attention are large
    enough for a token to look at a few others more than at the rest: the loss of a model that looks at all alike does
    not depend on its context, and would agree with any other.
    """
    with torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=dtype, attn_implementation=attention
        )
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                scale = parameter.shape[-1] ** -0.5
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    scale *= 3 * (2 * config.num_hidden_layers * config.hidden_size) ** -0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator, device=device).mul_(scale))
            elif name.endswith("input_layernorm.weight"):
                parameter.fill_(1.4)
    model.eval().requires_grad_(False)  # type: ignore[no-untyped-call]
    return model


def random_loaded_model(job: Job) -> LoadedModel:
    """Return a shape's model as `load_model` makes it ready, with random weights in place of a file's."""
    config = shape_config(job)

    def weights(_: ModelFiles, __: object, *, dtype: torch.dtype, attention: str, **___: object) -> PreTrainedModel:
        return random_model(config, dtype=dtype, device=job.device, attention=attention)

    with TemporaryDirectory() as folder, mock.patch.object(ModelFiles, "weights", weights):
        config.save_pretrained(folder)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))  # type: ignore[no-untyped-call]
        tokenizer.save_pretrained(folder)
        return load_model(
            folder,
            dtype=job.dtype,
            device=job.device,
            original_length=config.max_position_embeddings,
        )


def baseline_model(job: Job, dtype: torch.dtype) -> tuple[PreTrainedModel, str]:
    """Return a model as transformers runs it, and its attention: flash_attention_2 where that works, else sdpa."""
    wanted = ["sdpa"]
    if job.device != "cpu" and dtype != torch.float32 and is_flash_attn_2_available():
        wanted.insert(0, "flash_attention_2")
    for attention in wanted:
        try:
            model = _baseline_model(job, dtype, attention)
            with torch.inference_mode():
                model(input_ids=torch.zeros((1, PROBE_LENGTHS["cpu"]), dtype=torch.long, device=model.device))
        except (ImportError, RuntimeError, ValueError) as error:
            if attention == wanted[-1]:
                raise
            print(f"{job.way}: no {attention}: {failure_reason(error)}", flush=True)
            free_memory()
            continue
        return model, attention
    raise AssertionError


def _baseline_model(job: Job, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    if job.model in SHAPES:
        model = random_model(shape_config(job), dtype=dtype, device=job.device, attention=attention)
    else:
        files = ModelFiles(job.model, job.gguf_file)
        model_class: type[PreTrainedModel] = MODEL_FOR_CAUSAL_LM_MAPPING[type(files.config())]  # type: ignore[assignment]
        model = files.weights(model_class, dtype=dtype, attention=attention)
        model.to(job.device).eval().requires_grad_(False)  # type: ignore[arg-type]
    # The same frequencies for all, bit for bit, whatever device made them and whatever scaling came with the model
    RopePatch(model).install(unscaled(model))
    return model


def unscaled(model: PreTrainedModel) -> RescaleFactors:
    """Return factors of 1."""
    geometry = rope_geometry(model.config)
    window = geometry.original_length
    return none_factors(geometry.rotary_dim, geometry.base, original_length=window, target_length=window)


def make_documents(vocabulary_size: int, length: int, num_documents: int) -> list[NeedleDocument]:
    """Return documents of random tokens that end with an answer; document n of a length is always the same."""
    return [
        NeedleDocument(
            id=f"{length}-{number}",
            split="search",
            token_ids=np.random.default_rng([length, number]).integers(0, vocabulary_size, length).astype(np.int32),
            answer_start=length - NUM_ANSWER_TOKENS,
            depth=0.5,
            needle=Needle("key", "1"),
            passage_id="random",
            passage_sha256="",
            sha256=f"{length}-{number}",
        )
        for number in range(num_documents)
    ]


def tensors(document: NeedleDocument, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return token ids and labels, -100 before the answer; shapes (1, T)."""
    input_ids_1T = torch.from_numpy(document.token_ids.astype(np.int64))[None].to(device)
    labels_1T = input_ids_1T.clone()
    labels_1T[:, : document.answer_start] = -100
    return input_ids_1T, labels_1T


def free_memory() -> None:
    """Give back what nobody uses, to the device or to the system."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    else:
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
