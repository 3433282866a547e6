"""Export to ONNX Runtime GenAI: the config.json that its model builder reads.

Source: onnxruntime-genai 0.18.0, `models/builder.py`, `models/builders/{base,phi,llama}.py`.
"""

from results.export.config_forms import config_files, version_4_entries
from results.export.engine import Export, Mode, SourceModel
from results.export.lists import exported_lists
from rope.factors import RescaleFactors


def export_onnxruntime_genai(factors: RescaleFactors, mode: Mode, source: SourceModel | None) -> Export:
    """Return config.json for Phi-3, the one architecture whose builder makes both tables.

    Args:
        factors, mode, source: What to export, how, and for which model.

    Raises:
        ValueError: There is no model or another one, or the factors cannot be exported.
    """
    if source is None or source.model_type != "phi3":
        found = "no --model" if source is None else source.model_type
        raise ValueError(
            f"onnxruntime-genai must be given a phi3 model, got {found}: its builder drops the factors of llama "
            "without a word and does not build other architectures with them. Use another engine."
        )
    lists = exported_lists(factors, mode, source)
    mscales = {"short_mscale": lists.short_temperature, "long_mscale": lists.long_temperature}
    entries = version_4_entries(factors, lists, source, max_position_embeddings=factors.target_length, extra=mscales)
    notes = ["this config.json is for the builder: transformers 4 refuses it, and 5 warns of short_mscale."]
    if mode == "dual":
        notes.append(
            f"the graph chooses by the number of tokens so far; a cache that was filled within "
            f"{factors.original_length} tokens keeps the short factors, unless the runtime rewinds it (batch size 1)."
        )
    return Export(
        files=config_files(source, entries),
        steps=("python -m onnxruntime_genai.models.builder -m {folder} -o {folder}/onnx -p fp16 -e cuda",),
        notes=tuple(notes),
    )
