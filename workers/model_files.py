"""The files of a model, as transformers reads them: a folder, a GGUF file, or a hub id that is in the local cache."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

_WINDOWS = ("original_max_position_embeddings", "max_position_embeddings", "n_positions", "max_sequence_length")


class ModelFiles:
    """Where a model lies. Reads its parts; what cannot be read is a ValueError of one line."""

    def __init__(self, path: str, gguf_file: str | None = None) -> None:
        """Find the model; nothing is read yet.

        Args:
            path: Folder, file that ends in .gguf, or hub id.
            gguf_file: Name of a GGUF file inside the folder `path`.

        Raises:
            ValueError: There is no such file, or the folder holds no model.
        """
        if path.endswith(".gguf") and gguf_file is None:
            path, gguf_file = str(Path(path).parent), Path(path).name
        self._folder = path
        self._options: dict[str, Any] = {"local_files_only": True}
        self.name = path if gguf_file is None else str(Path(path, gguf_file))
        """The folder or file, for a message."""
        self.is_gguf = gguf_file is not None
        """Whether all parts are in one GGUF file."""
        if gguf_file is not None:
            self._options["gguf_file"] = gguf_file
            if not Path(self.name).is_file():
                raise ValueError(f"the GGUF file must exist, got {self.name}, which does not. Check the path.")
        elif Path(path).is_dir() and not (Path(path) / "config.json").is_file():
            raise ValueError(
                f"the model's folder must hold a config.json, got {path} without one. Name a .gguf file by "
                "--gguf-file, or check --model."
            )

    def config(self) -> PreTrainedConfig:
        """Return the configuration.

        Returns:
            The configuration, as the model's own class has it.

        Raises:
            ValueError: There is no such model, or its configuration cannot be read.
        """
        try:
            config: PreTrainedConfig = AutoConfig.from_pretrained(self._folder, **self._options)
        except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
            if not Path(self._folder).exists():
                raise ValueError(
                    "--model must be a folder, a .gguf file, or a hub id that is in the local cache, got "
                    f"{self._folder}, which is none. Check the path."
                ) from error
            raise self._unreadable("configuration", error) from error
        return config

    def say_their_window(self) -> bool:
        """Return whether the files themselves say a window; transformers fills in a default where they do not.

        Returns:
            Whether a window is written, at the top of the configuration or in one of its parts.
        """
        if self.is_gguf:
            return True  # the format demands a context length, and reading a large file once more takes seconds
        written, _ = PreTrainedConfig.get_config_dict(self._folder, **self._options)
        parts = [written, *(part for part in written.values() if isinstance(part, Mapping))]
        return any(part.get(name) for part in parts for name in _WINDOWS)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the tokenizer.

        Returns:
            The tokenizer, fast where there is one.

        Raises:
            ValueError: There is none, or it cannot be read.
        """
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(self._folder, **self._options)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._unreadable("tokenizer", error) from error
        return tokenizer

    def weights(
        self, model_class: type[PreTrainedModel], *, dtype: torch.dtype, attention: str, spread: bool = False
    ) -> PreTrainedModel:
        """Return the model with its weights, on the CPU or spread; those of a GGUF file are dequantized.

        Args:
            model_class: Class of the model.
            dtype: Precision of weights and activations.
            attention: Attention implementation, as transformers names it.
            spread: Whether its layers go to all GPUs that this process sees.

        Returns:
            The model.

        Raises:
            ValueError: The weights cannot be read, or some are missing.
        """
        dense = {"quantization_config": GgufConfig(dequantize=True)} if self.is_gguf else {}
        options = {**self._options, **dense, "dtype": dtype, "attn_implementation": attention}
        if spread:
            options["device_map"] = "auto"
        loading: tuple[PreTrainedModel, Mapping[str, set[str]]]
        try:
            loading = model_class.from_pretrained(  # type: ignore[assignment]
                self._folder, output_loading_info=True, **options
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise self._unreadable("weights", error) from error
        model, found = loading
        missing = sorted(found["missing_keys"])
        if missing:
            raise ValueError(
                f"the model's files must hold all of its weights, got {self.name} without {len(missing)} of them "
                f"({missing[0]}, ...). Copy the model again."
            )
        return model

    def _unreadable(self, part: str, error: Exception) -> ValueError:
        reason = " ".join(str(error).split())
        return ValueError(f"the model's {part} must be readable, got {self.name}: {reason}")
