"""The entries that vLLM and SGLang let their user override."""

from results.export.engine import SourceModel
from results.export.lists import ExportedLists
from rope.factors import RescaleFactors


def override_entries(factors: RescaleFactors, lists: ExportedLists, source: SourceModel | None) -> dict[str, object]:
    """Return the configuration's entries: `rope_type`, since `type` is not enough in an override, and all that belongs.

    `max_position_embeddings` sets the length of both engines' tables. short_mscale and long_mscale are their words for
    attention temperatures; what transformers calls attention_factor is read by neither.

    Args:
        factors, lists, source: What to export, and the model.
    """
    share = None if source is None else source.partial_rotary_factor
    rotation = {
        "rope_type": "longrope",
        "rope_theta": factors.base,
        **({} if share is None else {"partial_rotary_factor": share}),
        "original_max_position_embeddings": factors.original_length,
        "short_factor": lists.short,
        "long_factor": lists.long,
        "short_mscale": lists.short_temperature,
        "long_mscale": lists.long_temperature,
    }
    return {
        "max_position_embeddings": factors.target_length,
        "original_max_position_embeddings": factors.original_length,
        "rope_parameters": rotation,
    }
