"""Export to TensorRT-LLM: the config.json that its PyTorch backend reads.

Source: TensorRT-LLM's repository (main, late 2026), `_torch/attention_backend/interface.py` and
`functional.py`; read, not run.
"""

from results.export.config_forms import config_files, config_steps, declared_window, version_4_entries
from results.export.engine import Export, Mode, SourceModel
from results.export.lists import exported_lists
from rope.factors import RescaleFactors


def export_tensorrt_llm(factors: RescaleFactors, mode: Mode, source: SourceModel | None) -> Export:
    """Return config.json with the original length at the top: TensorRT-LLM would take 1024 where it finds none.

    Args:
        factors, mode, source: What to export, how, and for which model.

    Raises:
        ValueError: The factors cannot be exported, or TensorRT-LLM cannot compute their attention temperature.
    """
    lists = exported_lists(factors, mode, source)
    window, notes = declared_window(
        factors, "TensorRT-LLM", least=factors.target_length, most=8 * factors.target_length
    )
    entries = version_4_entries(factors, lists, source, max_position_embeddings=window)
    found = ["this was read in TensorRT-LLM's source, and not run."]
    if mode == "dual":
        found.append(
            f"TensorRT-LLM chooses when it starts: with --max_seq_len above {factors.original_length} every token gets "
            "the long factors."
        )
    return Export(
        files=config_files(source, entries),
        steps=config_steps(source, f"trtllm-serve {{folder}} --max_seq_len {factors.target_length}"),
        notes=(*found, *notes),
    )
