"""Export to transformers: a config.json that versions 4 and 5 load, and model code that keeps the window switch."""

import math
from importlib import resources

from results.export.config_forms import CONFIG, FRAGMENT, SAME_TEMPERATURE, config_files
from results.export.engine import Export, Mode, SourceModel
from results.export.huggingface import huggingface_fragment
from results.export.lists import ExportedLists, exported_lists
from rope.factors import RescaleFactors
from rope.temperature import longrope_temperature

MODELING = "modeling_ropewalk.py"
_TEMPLATE = "modeling_ropewalk.template"
_DROPS_CACHE = ("phi3", "phimoe", "phi4_multimodal")


def export_transformers(
    factors: RescaleFactors, mode: Mode, source: SourceModel | None, *, patches_model: bool = False
) -> Export:
    """Return config.json with both spellings of the factors; see `huggingface_fragment`.

    Phi-3 is spelled differently: transformers 4 refuses more than three keys there. They have no room for an attention
    temperature, so that one which is not the formula's is for transformers 5.

    Args:
        factors, mode, source: What to export, how, and for which model.
        patches_model: Whether `modeling_ropewalk.py` is written beside it, which is loaded with trust_remote_code.

    Raises:
        ValueError: The factors cannot be exported, or patches_model has no effect or no model.
    """
    lists = exported_lists(factors, mode, source)
    share = None if source is None else source.partial_rotary_factor
    entries = huggingface_fragment(factors, lists.short, partial_rotary_factor=share)
    notes: tuple[str, ...] = ()
    if source is not None and source.model_type == "phi3":
        notes = _spell_for_phi3(entries, factors, lists)
    files: dict[str, str] = {}
    if patches_model:
        entries["auto_map"] = {"AutoModelForCausalLM": f"{MODELING.removesuffix('.py')}.RopewalkForCausalLM"}
        files[MODELING] = _modeling(factors, mode, source, lists)
    files |= config_files(source, entries, without=())
    return Export(
        files=files, steps=_steps(source, patches_model), notes=(*notes, *_notes(factors, lists, source, patches_model))
    )


def _spell_for_phi3(entries: dict[str, object], factors: RescaleFactors, lists: ExportedLists) -> tuple[str, ...]:
    """Leave the three keys that transformers 4 takes, where they say everything."""
    formula = longrope_temperature(factors.scale, factors.original_length)
    if not math.isclose(formula, factors.attention_temperature, rel_tol=SAME_TEMPERATURE):
        return (
            "transformers 4 refuses this config.json: Phi-3 has no room for an attention temperature there. "
            "Transformers 5 takes it.",
        )
    entries["rope_scaling"] = {"type": "longrope", "short_factor": lists.short, "long_factor": lists.long}
    return ()


def _modeling(factors: RescaleFactors, mode: Mode, source: SourceModel | None, lists: ExportedLists) -> str:
    architectures = None if source is None else source.config.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and architectures else None
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(
            f"--short-temperature patch must know the model's class from architectures in config.json, got {name}. "
            "Give --model."
        )
    if mode == "pinned":
        raise ValueError(
            "--short-temperature patch must come with --mode dual, got pinned, which has one rotation for both "
            "windows. Drop one of them."
        )
    if source is not None and "auto_map" in source.config:
        raise ValueError(
            f"--short-temperature patch must be for a class of transformers, got {source.name} with code of its own "
            "(auto_map in config.json). Use --short-temperature engine."
        )
    template = resources.files("results.export").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    texts = {
        "@MODEL_CLASS@": name,
        "@ORIGINAL_LENGTH@": str(factors.original_length),
        "@SHORT_TEMPERATURE@": repr(lists.short_temperature),
    }
    for mark, text in texts.items():
        template = template.replace(mark, text)
    return template


def _steps(source: SourceModel | None, patches_model: bool) -> tuple[str, ...]:
    if source is None:
        return (f"put the entries of {{folder}}/{FRAGMENT} into the model's {CONFIG}",)
    trust = ", trust_remote_code=True" if patches_model else ""
    return (f"load {{folder}} with AutoModelForCausalLM.from_pretrained(FOLDER{trust})",)


def _notes(
    factors: RescaleFactors, lists: ExportedLists, source: SourceModel | None, patches_model: bool
) -> tuple[str, ...]:
    if patches_model:
        return (
            f"{MODELING} needs transformers 5; without trust_remote_code the model loads too, with transformers' own "
            "window switch.",
        )
    found = []
    if lists.short_temperature != lists.long_temperature:
        found.append(
            f"transformers multiplies cos and sin by {lists.long_temperature:.4f} up to {factors.original_length} "
            f"tokens too, where it should be {lists.short_temperature:.4f}: the model inside its window is not quite "
            "the original one. --short-temperature patch keeps it, and so do factors searched at temperature 1."
        )
    if lists.short != lists.long and (source is None or source.model_type not in _DROPS_CACHE):
        found.append(
            f"generate() that crosses {factors.original_length} tokens keeps a cache that was filled with the short "
            "factors (Phi-3 drops it). --short-temperature patch drops it too, --mode pinned needs no switch."
        )
    return tuple(found)
