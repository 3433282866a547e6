"""Export to MLX: the config.json that mlx-lm reads.

Source: mlx-lm 0.32.2, `models/rope_utils.py`, and the models that call it.
"""

from results.export.config_forms import config_files, config_steps, declared_window, version_4_entries
from results.export.engine import Export, Mode, SourceModel
from results.export.lists import exported_lists
from rope.factors import RescaleFactors

_MOST = 2**31 - 1
# Those whose model file hands rope_scaling and max_position_embeddings to rope_utils, under its own name or as llama
_READ = (
    "afmoe",
    "apertus",
    "bailing_moe",
    "bitnet",
    "dots1",
    "exaone",
    "exaone4",
    "falcon_h1",
    "granite",
    "granitemoe",
    "internlm2",
    "internlm3",
    "iquestcoder",
    "llama",
    "mimo",
    "minicpm",
    "mistral",
    "nanbeige",
    "nemotron-nas",
    "olmo2",
    "olmoe",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3_next",
    "seed_oss",
    "telechat3",
    "xverse",
)


def export_mlx(factors: RescaleFactors, mode: Mode, source: SourceModel | None) -> Export:
    """Return config.json as transformers 4 spells it: llama and qwen2 of mlx-lm read nothing else, and say nothing.

    mlx-lm turns every token by the long factors, in both modes, and computes the attention temperature from
    max_position_embeddings, which it uses for nothing else.

    Args:
        factors, mode, source: What to export, how, and for which model.

    Raises:
        ValueError: The factors cannot be exported, mlx-lm does not read them for this architecture, or it cannot
            compute their attention temperature.
    """
    if source is not None and source.model_type not in _READ:
        raise ValueError(
            f"mlx must read factors for the model's architecture, got {source.model_type}, for which mlx-lm ignores "
            f"them or was not checked. It reads them for {', '.join(_READ)}."
        )
    lists = exported_lists(factors, mode, source)
    window, notes = declared_window(factors, "mlx-lm", least=factors.original_length, most=_MOST)
    entries = version_4_entries(factors, lists, source, max_position_embeddings=window)
    if mode == "dual":
        always = "mlx-lm turns with the long factors at every length: dual and pinned are the same there."
        notes = (always, *notes)
    return Export(
        files=config_files(source, entries),
        steps=config_steps(source, "mlx_lm.generate --model {folder} --prompt ..."),
        notes=notes,
    )
