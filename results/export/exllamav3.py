"""Export to ExLlamaV3: the config.json that it reads.

Source: ExLlamaV3 1.6.5, `model/config.py`, `util/rope.py`.
"""

from results.export.config_forms import config_files, config_steps, declared_window, version_4_entries
from results.export.engine import Export, Mode, SourceModel
from results.export.lists import exported_lists
from rope.factors import RescaleFactors


def export_exllamav3(factors: RescaleFactors, mode: Mode, source: SourceModel | None) -> Export:
    """Return config.json; its max_position_embeddings alone makes ExLlamaV3 use the long factors, at every length.

    Args:
        factors, mode, source: What to export, how, and for which model.

    Raises:
        ValueError: The factors cannot be exported, or ExLlamaV3 cannot compute their attention temperature.
    """
    lists = exported_lists(factors, mode, source)
    window, notes = declared_window(factors, "ExLlamaV3", least=factors.target_length, most=8 * factors.target_length)
    if mode == "dual":
        always = "ExLlamaV3 turns with the long factors at every length: serve what is short with the model as it was."
        notes = (always, *notes)
    entries = version_4_entries(factors, lists, source, max_position_embeddings=window)
    steps = config_steps(source, f"load {{folder}} with a cache of up to {factors.target_length} tokens")
    return Export(files=config_files(source, entries), steps=steps, notes=notes)
