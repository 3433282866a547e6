"""Loads any Hugging Face causal LM that rotates, and checks it."""

import logging
from dataclasses import dataclass

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from workers.attention import PREFIX, attention_implementation, attention_shape, choose_kernel, register
from workers.attention_kernels import kernels
from workers.fused import fuse
from workers.geometry import RopeGeometry, rope_geometry, unknown_window
from workers.model_files import ModelFiles
from workers.precision import DTYPES, Precision, warn_if_slow
from workers.rope_patch import RopePatch
from workers.threads import assigned_cpus, set_threads
from workers.trimmed import trimming_refusal

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """What is known of a model without its weights: enough to build documents and a search space."""

    geometry: RopeGeometry
    """Its rotary embedding and original window."""
    tokenizer: PreTrainedTokenizerBase
    """Its tokenizer."""


@dataclass(frozen=True, kw_only=True)
class LoadedModel(ModelDescription):
    """A model that is ready to be scored."""

    model: PreTrainedModel
    """The model, in evaluation mode, without gradients."""
    patch: RopePatch
    """Installs factors in it."""
    dtype: torch.dtype
    """Precision of weights and activations."""
    device: torch.device
    """Where its inputs go; the model may go on to others."""
    attention: str
    """The attention kernel of the trimmed forward; of the plain one, transformers' name for it, where it is not
    trimmed."""
    is_trimmed: bool
    """Whether scores may be computed by `trimmed_forward`, which was proved to agree with the plain forward."""


def describe_model(path: str, *, gguf_file: str | None = None, original_length: int | None = None) -> ModelDescription:
    """Return what a model's configuration and tokenizer say, without reading its weights.

    Args:
        path, gguf_file, original_length: As `load_model`.

    Returns:
        Geometry and tokenizer.

    Raises:
        ValueError: As `load_model`, as far as it can be known without weights.
    """
    files = ModelFiles(path, gguf_file)
    geometry, _ = _checked(files, original_length)
    return ModelDescription(geometry=geometry, tokenizer=files.tokenizer())


def load_model(
    path: str,
    *,
    dtype: Precision,
    device: str = "auto",
    gguf_file: str | None = None,
    original_length: int | None = None,
    num_devices: int = 1,
) -> LoadedModel:
    """Return the model and tokenizer of a folder, of a GGUF file, or of a hub id that is in the local cache.

    Nothing is downloaded and no code that comes with a model is run. A scaling of RoPE that the model was saved with
    is warned about: rescale factors are relative to the model without it.

    Args:
        path: Folder, file that ends in .gguf, or hub id.
        dtype: Precision of weights and activations.
        device: auto (CUDA if there is one), cpu, cuda, cuda:1, ...
        gguf_file: Name of a GGUF file inside the folder `path`.
        original_length: Pre-training window in tokens, where the configuration does not say it or says it wrong.
        num_devices: GPUs over which the layers are spread, all that this process sees; device is auto or cuda then.

    Returns:
        The model.

    Raises:
        ValueError: There is no such model; it cannot be read, lacks weights or a tokenizer, is no causal LM or does
            not rotate; its original window is unknown; dtype or device is not to be had. One line each.
    """
    if dtype not in DTYPES:
        raise ValueError(f"--dtype must be one of {', '.join(DTYPES)}, got {dtype}. Choose one of them.")
    set_threads(assigned_cpus())
    torch_dtype, torch_device = DTYPES[dtype], _device(device)
    warn_if_slow(torch_dtype, torch_device)
    _check_num_devices(num_devices, device)
    files = ModelFiles(path, gguf_file)
    geometry, model_class = _checked(files, original_length)
    tokenizer = files.tokenizer()
    plain_attention = attention_implementation(model_class, torch_device, torch_dtype)
    model = files.weights(model_class, dtype=torch_dtype, attention=plain_attention, spread=num_devices > 1)
    if num_devices > 1:
        torch_device = input_device(model)
    else:
        if torch_device.index is not None:  # kernels of other packages go by it
            torch.cuda.set_device(torch_device)
        model.to(torch_device)  # type: ignore[arg-type]
    model.eval().requires_grad_(False)  # type: ignore[no-untyped-call]
    logger.info("fused kernels: %s", fuse(model))
    kernel = _attention_kernel(model, torch_device)
    refusal = trimming_refusal(model, attention=PREFIX + kernel, device=torch_device)
    if refusal:
        logger.warning("every forward is a plain one, slower and with more memory: %s", refusal)
    loaded = LoadedModel(
        geometry=geometry,
        tokenizer=tokenizer,
        model=model,
        patch=RopePatch(model),
        dtype=torch_dtype,
        device=torch_device,
        attention=plain_attention if refusal else kernel,
        is_trimmed=not refusal,
    )
    _report(loaded, files.name)
    return loaded


def input_device(model: PreTrainedModel) -> torch.device:
    """Return the device of the embedding, the first to meet the token ids.

    Args:
        model: A model on one device or on several.

    Returns:
        That device; the CPU where the embedding lies on a disk and comes when it is needed.
    """
    weight: torch.Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
    return torch.device("cpu") if weight.is_meta else weight.device


def _attention_kernel(model: PreTrainedModel, device: torch.device) -> str:
    """Return the attention kernel of a trimmed forward; transformers knows it by then."""
    found = kernels(device, model.dtype)
    register(found)
    return choose_kernel(found, attention_shape(model.config), device=device, dtype=model.dtype)


def _check_num_devices(num_devices: int, device: str) -> None:
    if num_devices < 1:
        raise ValueError(f"a model must have at least 1 device, got {num_devices}. Correct it.")
    if num_devices > 1 and device not in ("auto", "cuda"):
        raise ValueError(
            f"--device must be auto or cuda for a model on {num_devices} GPUs, got {device}. Drop it, or use one GPU."
        )
    if num_devices > max(1, torch.cuda.device_count()):
        raise ValueError(
            f"a model on {num_devices} GPUs must see as many, got {torch.cuda.device_count()}. Ask for fewer."
        )


def _checked(files: ModelFiles, original_length: int | None) -> tuple[RopeGeometry, type[PreTrainedModel]]:
    config = files.config()
    geometry = rope_geometry(config, original_length=original_length)
    if original_length is None and not files.say_their_window():
        raise unknown_window(files.name)
    return geometry, _causal_class(config)


def _causal_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(
            f"the model must be a causal language model, got a {config.model_type} configuration. Choose another model."
        )
    model_class: type[PreTrainedModel] = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]  # type: ignore[assignment]
    return model_class


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    num_there = {"cpu": 1, "cuda": torch.cuda.device_count()}.get(kind, 0)
    if (index and not index.isdecimal()) or int(index or 0) >= num_there:
        raise ValueError(
            f"--device must be auto, cpu, or one of the {torch.cuda.device_count()} CUDA devices that are here (cuda, "
            f"cuda:1, ...), got {name}. Choose another."
        )
    return torch.device(name)


def _report(loaded: LoadedModel, name: str) -> None:
    geometry = loaded.geometry
    logger.info(
        "%s: %s in %s on %s, attention by %s; rotary_dim %d, base %g, original window %d tokens",
        name,
        type(loaded.model).__name__,
        loaded.dtype,
        loaded.device,
        loaded.attention,
        geometry.rotary_dim,
        geometry.base,
        geometry.original_length,
    )
    if loaded.patch.kept_layer_types:
        logger.info(
            "%s rotates by layer type: factors go to full_attention; %s keeps its rotation",
            name,
            ", ".join(loaded.patch.kept_layer_types),
        )
    if geometry.native_scaling != "default":
        logger.warning(
            "%s was saved with a RoPE scaling (%s): rescale factors replace it, so the method none is the model "
            "without it; its original window is taken to be %d tokens, --original-length sets another",
            name,
            geometry.native_scaling,
            geometry.original_length,
        )
