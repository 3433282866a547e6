"""Hugging Face configurations of transformers 4 and 5: lists of factors, and formulas as the factors they amount to."""

from collections.abc import Callable, Mapping

from results.imports.config_fields import RopeConfig, rope_config
from results.imports.config_formulas import dynamic_of, linear_of, llama3_of, yarn_of
from results.imports.factor_list import check_length, numbers_of_json
from results.imports.imported import Given, Imported, plain_short
from rope.factors import RescaleFactors
from rope.temperature import longrope_temperature

_FORMULAS: dict[str, Callable[[RopeConfig, Given], Imported]] = {
    "linear": linear_of,
    "dynamic": dynamic_of,
    "yarn": yarn_of,
    "llama3": llama3_of,
}


def import_config(config: Mapping[str, object], given: Given) -> Imported:
    """Return the factors with which transformers rotates a model.

    Args:
        config: A config.json of version 4 (`rope_scaling`) or 5 (`rope_parameters`), the part of one that exports
            write, or `rope_scaling` alone.
        given: What the user says beside it.

    Returns:
        The factors. The attention temperature is set for both windows, as transformers applies it, unless short_mscale
        and long_mscale, which vLLM and PhiMoE read, say another for each.

    Raises:
        ValueError: There is no scaling, or one that factors cannot say; an entry that it needs is missing or wrong.

    Source: transformers 5.23, `modeling_rope_utils.py`.
    """
    rope = rope_config(config)
    if rope.rope_type == "longrope":
        return _longrope_of(rope, given)
    if rope.rope_type == "default":
        raise ValueError(
            "the configuration must have a scaling of RoPE, got rope_type default: the model rotates as it was "
            "trained, and there are no factors to import. Name an extended model."
        )
    formula = _FORMULAS.get(rope.rope_type)
    if formula is None:
        raise ValueError(
            f"the scaling must be longrope, {', '.join(_FORMULAS)}, got {rope.rope_type!r}, which factors cannot be "
            "derived from. Give a list of factors instead."
        )
    return formula(rope, given)


def longrope_short_window(config: Mapping[str, object]) -> tuple[tuple[float, ...], float]:
    """Return how a longrope model rotates inside its original window: its short list, and the temperature there.

    Args:
        config: Its config.json.

    Returns:
        As `import_config` reads them.

    Raises:
        ValueError: The list is none, or neither temperature nor windows are said.
    """
    rope = rope_config(config)
    short = numbers_of_json("short_factor in config.json", rope.parameters.get("short_factor"))
    original_length, target_length, _ = _windows(rope)
    (_, temperature), _ = _temperatures(rope, original_length, target_length)
    is_said = rope.number("attention_factor") is not None or rope.number("short_mscale") is not None
    if not is_said and (original_length is None or target_length is None):
        raise ValueError(
            "a longrope config.json must say max_position_embeddings and original_max_position_embeddings, got "
            f"{target_length} and {original_length}. Add them."
        )
    return short, temperature


def _longrope_of(rope: RopeConfig, given: Given) -> Imported:
    for name in ("long_factor", "short_factor"):
        if rope.parameters.get(name) is None:
            raise ValueError(
                f"a scaling of type longrope must have long_factor and short_factor, got no {name}. Add it."
            )
    long = numbers_of_json("long_factor", rope.parameters["long_factor"])
    short = numbers_of_json("short_factor", rope.parameters["short_factor"])
    rotary_dim = rope.rotary_dim(given, num_pairs=len(long))
    check_length("long_factor", long, rotary_dim)
    check_length("short_factor", short, rotary_dim)
    original_length, target_length, window_notes = _windows(rope)
    temperatures, notes = _temperatures(
        rope, original_length or given.original_length, target_length or given.target_length
    )
    factors = RescaleFactors(
        values=long,
        rotary_dim=rotary_dim,
        base=rope.base(given),
        original_length=_known("original", given.original_length or original_length),
        target_length=_known("target", given.target_length or target_length),
        attention_temperature=temperatures[0],
        short_values=plain_short(short),
        short_attention_temperature=temperatures[1],
        method="imported",
    )
    return Imported(
        factors=factors, form="a Hugging Face configuration, longrope", notes=(*rope.notes, *window_notes, *notes)
    )


def _windows(rope: RopeConfig) -> tuple[int | None, int | None, list[str]]:
    """Return the original and the target window in tokens, as far as the configuration says them, and what to say."""
    original_length, longest, factor = rope.original_length(), rope.longest(), rope.number("factor")
    if original_length is None and longest is not None and factor is not None:
        # transformers takes max_position_embeddings for the original window here
        return longest, int(longest * factor), []
    if longest is None and original_length is not None and factor is not None:
        return original_length, int(original_length * factor), []
    if original_length is None or longest is None or factor is None or rope.number("attention_factor") is None:
        return original_length, longest, []
    # Both are said, so that no temperature hangs on max_position_embeddings here; engines without a key for it do
    target_length = round(original_length * factor)
    note = (
        f"max_position_embeddings is {longest}, but factor makes {target_length} tokens of {original_length}: these "
        "are imported, since exports for engines that compute the attention temperature declare another window. Or "
        f"give --target-length {longest}."
    )
    return original_length, target_length, [] if target_length == longest else [note]


def _temperatures(
    rope: RopeConfig, original_length: int | None, target_length: int | None
) -> tuple[tuple[float, float], list[str]]:
    """Return the temperatures of the long and the short window by the configuration's own windows, and what to say."""
    said = rope.number("attention_factor")
    long, short = rope.number("long_mscale"), rope.number("short_mscale")
    factor = rope.number("factor")
    ratio = target_length / original_length if original_length and target_length else factor
    scale = ratio if factor is None else factor
    notes = []
    if said is None and factor is not None and ratio is not None and abs(factor / ratio - 1) > 1e-6:
        notes.append(
            f"factor is {factor:g}, but the windows make {ratio:g}: transformers 5 takes the attention temperature "
            "from the first, as is done here, transformers 4 and other engines from the second."
        )
    if said is None:
        extends = scale is not None and scale > 1 and original_length is not None
        said = longrope_temperature(scale or 1.0, original_length or 2) if extends else 1.0
    if long is None and short is None:
        return (said, said), notes
    if rope.number("attention_factor") is not None and {long, short} != {said}:
        notes.append(
            "long_mscale and short_mscale are imported, as vLLM and PhiMoE read them; others of transformers' models "
            f"take attention_factor, {said:g}, in both windows."
        )
    return (said if long is None else long, said if short is None else short), notes


def _known(name: str, length: int | None) -> int:
    if length is None:
        keys = {"original": "original_max_position_embeddings", "target": "max_position_embeddings"}
        raise ValueError(f"the configuration must say {keys[name]}, got none. Give --{name}-length.")
    return length
