"""Everything that one import needs."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Factors of an existing model or list, to be compared, refined and exported.

    Raises:
        ValueError: A number is out of range.
    """

    source: str
    """A config.json or its folder, a .gguf file, a list of factors (CSV, text, JSON), or published:NAME."""
    output: str = "factors.json"
    """File to write."""
    original_length: int | None = None
    """Pre-training window in tokens, where the source does not say it or says it wrong."""
    target_length: int | None = None
    """Window that the factors are for in tokens, where the source does not say it or says it wrong."""
    base: float | None = None
    """RoPE base, where the source does not say it."""
    rotary_dim: int | None = None
    """Rotated dimensions per head, where the source does not say them; default: twice the list's length."""
    short_list: str | None = None
    """File with the factors inside the original window, where the source has none; default: the model's rotation."""
    attention_temperature: float | str | None = None
    """Temperature beyond the original window: none, longrope, yarn or a number; default: the source's."""
    force: bool = False
    """Replace an output that exists."""

    def __post_init__(self) -> None:
        """Refuse numbers that no source can go with."""
        for name in ("original_length", "target_length", "rotary_dim"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}. Correct it.")
        if self.base is not None and not self.base > 1:
            raise ValueError(f"--base must be above 1, got {self.base:g}. Correct it.")
        if not self.source:
            raise ValueError("an import must have a source, got none. Name a file, a folder or published:NAME.")
