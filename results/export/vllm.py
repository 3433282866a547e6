"""Export to vLLM: what `vllm serve` overrides in the model's configuration, and the command line.

Source: vLLM 0.33.0, `model_executor/layers/rotary_embedding`, `config/model.py`, `transformers_utils/config.py`.
"""

import shlex

from results.export.config_forms import json_text
from results.export.engine import Export, Mode, SourceModel
from results.export.lists import exported_lists
from results.export.overrides import override_entries
from rope.factors import RescaleFactors

OVERRIDES = "vllm_overrides.json"


def export_vllm(factors: RescaleFactors, mode: Mode, source: SourceModel | None) -> Export:
    """Return the overrides.

    They replace the model's rope_parameters whole and unchecked. Base and rotated share are among them, since vLLM
    would else rotate with base 10000, or whole heads, in silence.

    Args:
        factors, mode, source: What to export, how, and for which model.

    Raises:
        ValueError: The factors cannot be exported.
    """
    lists = exported_lists(factors, mode, source)
    model = "MODEL" if source is None else shlex.quote(source.name)
    command = (
        f'vllm serve {model} --max-model-len {factors.target_length} --hf-overrides "$(cat {{folder}}/{OVERRIDES})"'
    )
    original = factors.original_length
    notes = []
    if mode == "dual":
        notes.append(
            f"vLLM chooses once, when it starts: with --max-model-len above {original} every "
            f"request gets the long factors, short ones too. Serve these with --max-model-len {original}."
        )
    notes.append(f"without --max-model-len vLLM stays at {original} tokens.")
    if source is not None and source.model_type == "olmo2":
        notes.append("vLLM runs this architecture by transformers' code, which chooses per batch.")
    if source is None:
        notes.append("a model that rotates only a part of each head needs --model, so that the overrides say the part.")
    return Export(
        files={OVERRIDES: json_text(override_entries(factors, lists, source))}, steps=(command,), notes=tuple(notes)
    )
