"""Export to ExLlamaV2: the config.json that it reads.

Source: ExLlamaV2 0.3.2, `config.py`, `rope.py`.
"""

from results.export.config_forms import config_files, config_steps, declared_window, version_4_entries
from results.export.engine import Export, Mode, SourceModel
from results.export.lists import exported_lists
from rope.factors import RescaleFactors


def export_exllamav2(factors: RescaleFactors, mode: Mode, source: SourceModel | None) -> Export:
    """Return config.json with rope_scaling and `type` alone: ExLlamaV2 reads no rope_parameters and refuses both types.

    Args:
        factors, mode, source: What to export, how, and for which model.

    Raises:
        ValueError: The factors cannot be exported, or ExLlamaV2 cannot compute their attention temperature.
    """
    lists = exported_lists(factors, mode, source)
    window, notes = declared_window(factors, "ExLlamaV2", least=factors.target_length, most=8 * factors.target_length)
    original = factors.original_length
    choice = (
        f"ExLlamaV2 chooses when it loads: with a length above {original} every token gets the long factors. It "
        f"computes the attention temperature from that length, so that only {window} is right."
    )
    entries = version_4_entries(factors, lists, source, max_position_embeddings=window)
    # Where they are in the file, these come before max_position_embeddings
    files = config_files(source, entries, without=("rope_parameters", "max_sequence_length", "model_max_length"))
    steps = config_steps(source, f"python examples/chat.py -m {{folder}} -l {window} (TabbyAPI: max_seq_len: {window})")
    return Export(files=files, steps=steps, notes=(choice, *notes))
