"""Export to SGLang: what its server overrides in the model's configuration, and the command line.

Source: SGLang 0.5.23, `srt/layers/rotary_embedding`, `srt/utils/hf_transformers`, `srt/configs/model_config.py`.
"""

import shlex

from results.export.config_forms import json_text
from results.export.engine import Export, Mode, SourceModel
from results.export.lists import exported_lists
from results.export.overrides import override_entries
from rope.factors import RescaleFactors

OVERRIDES = "sglang_overrides.json"
_READ = ("llama", "mistral", "phi3", "qwen2", "qwen3", "minicpm")


def export_sglang(factors: RescaleFactors, mode: Mode, source: SourceModel | None) -> Export:
    """Return the overrides. They are merged into the model's own, where `type` alone would lose against `rope_type`.

    The original length is inside the dictionary too: for Qwen it is read nowhere else.

    Args:
        factors, mode, source: What to export, how, and for which model.

    Raises:
        ValueError: The factors cannot be exported.
    """
    lists = exported_lists(factors, mode, source)
    model = "MODEL" if source is None else shlex.quote(source.name)
    command = (
        f"python -m sglang.launch_server --model-path {model} --context-length {factors.target_length} "
        f'--json-model-override-args "$(cat {{folder}}/{OVERRIDES})"'
    )
    original = factors.original_length
    notes = [
        f"SGLang 0.5.23 turns the token at position {original} like one at position 0 where it is the last of its "
        "batch, and keeps its key: once in every text that grows past that length.",
    ]
    if mode == "dual":
        notes.insert(
            0,
            f"SGLang chooses per batch: one position beyond {original} gives all of the batch the long factors, and "
            "texts that cross keep keys of both in the cache. --mode pinned avoids it.",
        )
    if source is not None and source.model_type not in _READ:
        notes.append(
            f"whether SGLang reads factors for {source.model_type} was not checked: it does for {', '.join(_READ)}."
        )
    return Export(
        files={OVERRIDES: json_text(override_entries(factors, lists, source))}, steps=(command,), notes=tuple(notes)
    )
