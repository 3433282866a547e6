"""Entries of a Hugging Face configuration, checked as they are read; an entry of null counts as missing."""

from collections.abc import Mapping
from dataclasses import dataclass

from results.imports.imported import Given, agreed, mapping_of, needed
from rope.geometry import check_number, check_whole_number, shown

FULL_ATTENTION = "full_attention"
"""The layer type that is read where layers rotate by type; sliding windows never grow."""
_SCALINGS = ("rope_scaling", "rope_parameters")


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """The part of a configuration that says how a model rotates."""

    config: Mapping[str, object]
    """The configuration of the text model."""
    parameters: Mapping[str, object]
    """Its `rope_scaling` or `rope_parameters`."""
    notes: tuple[str, ...]
    """What was passed over."""

    @property
    def rope_type(self) -> str:
        """The kind of scaling, as transformers 5 calls it; a list of factors is longrope whatever its name."""
        if "long_factor" in self.parameters:
            return "longrope"
        name = str(self.parameters.get("rope_type") or self.parameters.get("type") or "default")
        return "longrope" if name == "su" else name

    def number(self, name: str) -> float | None:
        """Return a number of the parameters, above 0; None where it is missing.

        Args:
            name: Key.

        Raises:
            ValueError: It is no number above 0.
        """
        return _number(self.parameters, name)

    def base(self, given: Given) -> float:
        """Return the RoPE base.

        Args:
            given: What the user says.

        Raises:
            ValueError: It is not known, is no base, or the user contradicts.
        """
        found = _number(self.parameters, "rope_theta")
        for name in ("rope_theta", "rotary_emb_base"):
            found = _number(self.config, name) if found is None else found
        base = agreed("base", found, given.base)
        if base is None:
            raise ValueError(
                "the configuration must say the RoPE base, got none (rope_theta). Give --base; most architectures take "
                "10000 in silence."
            )
        return base

    def original_length(self) -> int | None:
        """Return the pre-training window in tokens, which transformers looks for at the top first; None if unsaid.

        Raises:
            ValueError: It is no whole number of tokens.
        """
        for part in (self.config, self.parameters):
            length = _whole(part, "original_max_position_embeddings")
            if length is not None:
                return length
        return None

    def longest(self) -> int | None:
        """Return max_position_embeddings, tokens; None if unsaid.

        Raises:
            ValueError: It is no whole number of tokens.
        """
        return _whole(self.config, "max_position_embeddings")

    def rotary_dim(self, given: Given, *, num_pairs: int | None = None) -> int:
        """Return the rotated dimensions per head.

        Args:
            given: What the user says.
            num_pairs: Length of a list of factors, from which it follows where nothing else says it.

        Raises:
            ValueError: It is not known, or the user contradicts.
        """
        found = self._rotary_dim()
        if found is None and num_pairs is not None and given.rotary_dim is None:
            return 2 * num_pairs
        return int(needed("rotary-dim", agreed("rotary-dim", found, given.rotary_dim)))

    def _rotary_dim(self) -> int | None:
        rope_part = _whole(self.config, "qk_rope_head_dim")  # multi-head latent attention rotates a part of its own
        if rope_part is not None:
            return rope_part
        head_dim = _whole(self.config, "head_dim")
        hidden, heads = _whole(self.config, "hidden_size"), _whole(self.config, "num_attention_heads")
        if head_dim is None and (hidden is None or heads is None):
            return None
        head_dim = hidden // heads if head_dim is None and hidden and heads else head_dim
        assert head_dim is not None
        shares = (
            _number(part, name)
            for part, name in (
                (self.parameters, "partial_rotary_factor"),
                (self.config, "partial_rotary_factor"),
                (self.config, "rotary_pct"),
            )
        )
        return int(head_dim * next((share for share in shares if share is not None), 1.0))


def rope_config(config: Mapping[str, object]) -> RopeConfig:
    """Return the part of a configuration that says how the model rotates.

    Of a multimodal model the text part is read; of a model that rotates by layer type, the full attention. Where both
    spellings are there, transformers 4 and 5 prefer `rope_scaling`, and so does this.

    Args:
        config: A whole config.json, a part of one as exports have it, or `rope_scaling` alone.

    Returns:
        The part.

    Raises:
        ValueError: There is no scaling, or one of another form.
    """
    if not any(config.get(name) for name in _SCALINGS):
        text = config.get("text_config")
        if isinstance(text, Mapping) and any(text.get(name) for name in _SCALINGS):
            return rope_config(text)
        if "rope_type" in config or "type" in config:
            return RopeConfig(config={}, parameters=config, notes=())
        raise ValueError(
            "the configuration must have a scaling of RoPE, got neither rope_scaling nor rope_parameters: the model "
            "rotates as it was trained, and there are no factors to import. Name an extended model."
        )
    both = [mapping_of(config[name], name) for name in _SCALINGS if config.get(name)]
    notes: list[str] = []
    parameters = both[0]
    if any(isinstance(value, Mapping) for value in parameters.values()):
        if not isinstance(parameters.get(FULL_ATTENTION), Mapping):
            raise ValueError(
                f"a model that rotates by layer type must have {FULL_ATTENTION} among them, got "
                f"{shown(sorted(parameters))}. Its layers have no rotation in common."
            )
        parameters = mapping_of(parameters[FULL_ATTENTION], FULL_ATTENTION)
        notes.append("Layers of other types than full attention rotate otherwise; theirs is not imported.")
    if len(both) == 2 and both[0].get("long_factor") != both[1].get("long_factor"):
        notes.append(
            "rope_parameters holds other factors than rope_scaling, which transformers prefers; those of "
            "rope_scaling are imported."
        )
    return RopeConfig(config=config, parameters=parameters, notes=tuple(notes))


def _number(part: Mapping[str, object], name: str) -> float | None:
    value = part.get(name)
    if value is None:
        return None
    check_number(name, value, above=0.0)
    return float(value)  # type: ignore[arg-type]


def _whole(part: Mapping[str, object], name: str) -> int | None:
    value = part.get(name)
    if value is None:
        return None
    check_whole_number(name, value, at_least=1)
    return int(value)  # type: ignore[call-overload,no-any-return]
