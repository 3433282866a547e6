"""RescaleFactors: how much longer each frequency pair's wavelength gets. The value that everything here is about."""

import json
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path

from rope.factor_files import file_text, number_lines, parsed_json
from rope.geometry import check_critical_dim, check_lengths, check_number, check_rotary, check_whole_number, shown

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class RescaleFactors:
    """One rescale factor per frequency pair, with the model and window that they are for.

    inv_freq_i = 1 / (values_i * base^(2i / rotary_dim)), LongRoPE2's eq. 8: a factor multiplies the wavelength.
    Immutable, hashable, picklable; two are equal when all but their provenance is. Factors need not be monotone nor
    at least 1: published ones are not.

    Example:
        >>> factors = RescaleFactors(values=(1.0, 4.0), rotary_dim=4, base=1e4, original_length=256,
        ...                          target_length=1024, method="linear")
        >>> factors.scale
        4.0

    Raises:
        ValueError: values or short_values has another length than rotary_dim / 2 or an entry that is not a finite
            number above 0; rotary_dim is odd; base is not above 1; a length is below 1 or the target below the
            original; critical_dim names no pair; a temperature is not above 0; num_start_tokens is negative; method is
            no text; provenance is not texts by text.

    Source: LongRoPE2, arXiv:2502.20082, eq. 8; num_start_tokens: LongRoPE, arXiv:2402.13753, eq. 3.
    """

    values: tuple[float, ...]
    """One factor per frequency pair, fastest pair first; each multiplies that pair's wavelength."""
    rotary_dim: int
    """Rotated dimensions per head; even, twice the number of frequency pairs."""
    base: float
    """RoPE base of the model as it was pre-trained."""
    original_length: int
    """Pre-training window, tokens; up to it the model keeps its original rotation."""
    target_length: int
    """Window that the factors are for, tokens."""
    critical_dim: int | None = None
    """Frequency pair, from 0, from which on the factors were free; None where the method knows none."""
    attention_temperature: float = 1.0
    """Multiplies cos and sin, in the long window only."""
    num_start_tokens: int = 0
    """LongRoPE's n-hat: positions below it keep their original rotation in the long window too."""
    short_values: tuple[float, ...] | None = None
    """Factors inside the original window, as published models have them; None for the model's own rotation."""
    short_attention_temperature: float = 1.0
    """Multiplies cos and sin inside the original window."""
    method: str
    """What made the factors: a name of `methods.METHODS`, or a search's."""
    provenance: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Where they come from, for a reader; neither compared nor hashed."""

    def __post_init__(self) -> None:
        """Check every field, then store plain Python numbers in place of numpy's."""
        check_rotary(self.rotary_dim, self.base)
        check_lengths(self.original_length, self.target_length)
        check_number("attention_temperature", self.attention_temperature, above=0.0)
        check_whole_number("num_start_tokens", self.num_start_tokens, at_least=0)
        if self.critical_dim is not None:
            check_critical_dim(self.critical_dim, self.rotary_dim)
        check_number("short_attention_temperature", self.short_attention_temperature, above=0.0)
        _check_values("values", self.values, self.rotary_dim)
        if self.short_values is not None:
            _check_values("short_values", self.short_values, self.rotary_dim)
        _check_texts(self.method, self.provenance)
        self._store_plain()

    @property
    def short(self) -> "RescaleFactors | None":
        """The factors of the original window as factors of their own; None where it is the model's own rotation."""
        if self.short_values is None and self.short_attention_temperature == 1.0:
            return None
        return replace(
            self,
            values=self.short_values or (1.0,) * len(self.values),
            attention_temperature=self.short_attention_temperature,
            critical_dim=None,
            num_start_tokens=0,
            short_values=None,
            short_attention_temperature=1.0,
        )

    @property
    def scale(self) -> float:
        """target_length / original_length, at least 1."""
        return self.target_length / self.original_length

    def with_values(
        self, values: Iterable[float], *, method: str, critical_dim: int | None = None, num_start_tokens: int = 0
    ) -> "RescaleFactors":
        """Return other factors for the same model and window.

        Args:
            values: Factors, shape (rotary_dim / 2,), above 0.
            method: What made them.
            critical_dim: Frequency pair, from 0, from which on they were free.
            num_start_tokens: Positions that keep their original rotation.

        Returns:
            A copy with these four fields; attention temperature and provenance stay.

        Raises:
            ValueError: As the class does.
        """
        return replace(
            self, values=tuple(values), method=method, critical_dim=critical_dim, num_start_tokens=num_start_tokens
        )

    def with_temperature(self, attention_temperature: float) -> "RescaleFactors":
        """Return the same factors with another attention temperature.

        Args:
            attention_temperature: Multiplies cos and sin in the long window; above 0.

        Returns:
            A copy; nothing else changes.

        Raises:
            ValueError: attention_temperature is not a finite number above 0.
        """
        return replace(self, attention_temperature=attention_temperature)

    def with_provenance(self, **facts: str) -> "RescaleFactors":
        """Return the same factors with more said about where they come from; they stay equal.

        Args:
            **facts: Texts by name; a name that is there already is replaced.

        Returns:
            A copy; nothing else changes.

        Raises:
            ValueError: A fact is no text.
        """
        return replace(self, provenance={**self.provenance, **facts})

    @classmethod
    def from_list(
        cls,
        values: Iterable[float],
        *,
        rotary_dim: int,
        base: float,
        original_length: int,
        target_length: int,
        critical_dim: int | None = None,
        attention_temperature: float = 1.0,
        method: str = "published",
    ) -> "RescaleFactors":
        """Return a bare published list as factors; the temperature that was published with it is for the caller to add.

        Args:
            values: Factors, shape (rotary_dim / 2,), above 0.
            rotary_dim, base, original_length, target_length: Model and window, as the class has them.
            critical_dim, attention_temperature, method: As the class has them.

        Returns:
            The factors.

        Raises:
            ValueError: As the class does.
        """
        return cls(
            values=tuple(values),
            rotary_dim=rotary_dim,
            base=base,
            original_length=original_length,
            target_length=target_length,
            critical_dim=critical_dim,
            attention_temperature=attention_temperature,
            method=method,
        )

    def to_json(self) -> str:
        """Return the factors as JSON; `from_json` gives every bit back.

        Returns:
            An object with `schema_version` and one key per field, indented, ending in a line break.
        """
        return json.dumps({"schema_version": SCHEMA_VERSION, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "RescaleFactors":
        """Return the factors that `to_json` wrote; a bare list is for `load_factors`.

        Args:
            text: JSON.

        Returns:
            The factors, equal to those written.

        Raises:
            ValueError: text is no JSON object, has another schema version, unknown keys or missing ones, or a field
                that the class refuses.
        """
        document = parsed_json(text)
        if not isinstance(document, dict) or document.get("schema_version") != SCHEMA_VERSION:
            found = document.get("schema_version") if isinstance(document, dict) else document
            raise ValueError(
                f"factors must be a JSON object with schema_version {SCHEMA_VERSION}, got {shown(found)}. "
                "Give a file that this version of Ropewalk saved, or a bare list of factors."
            )
        del document["schema_version"]
        _check_keys(document)
        return cls(**document)

    def save(self, path: str | Path) -> None:
        """Write the factors as JSON, whole or not at all; an older file of that name is replaced.

        Args:
            path: File to write; its folder exists.

        Raises:
            OSError: The folder is missing or not writable, or the disk is full.
        """
        temporary = Path(f"{path}.{os.getpid()}.tmp")
        try:
            temporary.write_text(self.to_json(), encoding="utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> "RescaleFactors":
        """Return the factors that `save` wrote; a bare list is for `load_factors`.

        Args:
            path: File to read.

        Returns:
            The factors.

        Raises:
            ValueError: The file cannot be read or `from_json` refuses it; the message begins with the path.
        """
        text = file_text(path)
        try:
            return cls.from_json(text)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def _store_plain(self) -> None:
        """Replace numpy scalars by Python's, which JSON knows and equality does not tell apart."""
        object.__setattr__(self, "values", tuple(float(value) for value in self.values))
        if self.short_values is not None:
            object.__setattr__(self, "short_values", tuple(float(value) for value in self.short_values))
        object.__setattr__(self, "provenance", dict(self.provenance))
        for name in ("base", "attention_temperature", "short_attention_temperature"):
            object.__setattr__(self, name, float(getattr(self, name)))
        for name in ("rotary_dim", "original_length", "target_length", "critical_dim", "num_start_tokens"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, int(getattr(self, name)))


def load_factors(
    path: str | Path,
    *,
    rotary_dim: int | None = None,
    base: float | None = None,
    original_length: int | None = None,
    target_length: int | None = None,
) -> RescaleFactors:
    """Return the factors in a file of any known form: Ropewalk's JSON, a bare JSON list, or one number per line.

    The attention temperature of a bare list is 1: what was published with it is for the caller to add.

    Args:
        path: File to read; its content tells the form, not its name.
        rotary_dim, base, original_length, target_length: Model and window. A bare list needs all four; Ropewalk's
            own JSON must agree with those given.

    Returns:
        The factors; those of a bare list have the method "published" and the file's name in their provenance.

    Raises:
        ValueError: The file cannot be read, is of none of the forms, is for another model or window, or a bare list
            came without its model and window; the message begins with the path.
    """
    text = file_text(path)
    try:
        if text.lstrip().startswith("{"):
            factors = RescaleFactors.from_json(text)
            _check_agreement("rotary_dim", factors.rotary_dim, rotary_dim)
            _check_agreement("base", factors.base, base)
            _check_agreement("original_length", factors.original_length, original_length)
            _check_agreement("target_length", factors.target_length, target_length)
            return factors
        values = parsed_json(text) if text.lstrip().startswith("[") else number_lines(text)
        if rotary_dim is None or base is None or original_length is None or target_length is None:
            raise ValueError(
                "a bare list of factors must come with rotary_dim, base, original_length and target_length, "
                f"got {rotary_dim}, {base}, {original_length} and {target_length}. Give all four."
            )
        return RescaleFactors.from_list(
            values, rotary_dim=rotary_dim, base=base, original_length=original_length, target_length=target_length
        ).with_provenance(file=Path(path).name)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _check_values(name: str, values: object, rotary_dim: int) -> None:
    if not isinstance(values, Collection):
        raise ValueError(f"{name} must be a list of numbers, got {shown(values)}. Give one per frequency pair.")
    if len(values) != rotary_dim // 2:
        raise ValueError(
            f"{name} must have {rotary_dim // 2} entries (rotary_dim {rotary_dim} / 2), got {len(values)}. "
            "Was it made for another model?"
        )
    for pair, value in enumerate(values):
        check_number(f"{name}[{pair}]", value, above=0.0)


def _check_texts(method: object, provenance: object) -> None:
    if not isinstance(method, str) or not method:
        raise ValueError(f"method must be a name, got {shown(method)}. Say what made the factors.")
    texts = isinstance(provenance, Mapping) and all(
        isinstance(text, str) for item in provenance.items() for text in item
    )
    if not texts:
        raise ValueError(f"provenance must be texts by name, got {shown(provenance)}. Write its values as texts.")


def _check_keys(document: Mapping[str, object]) -> None:
    known = [entry.name for entry in fields(RescaleFactors)]
    unknown = sorted(document.keys() - set(known))
    if unknown:
        raise ValueError(f"factors must have known keys only, got {shown(unknown)}. Known are {', '.join(known)}.")
    required = [entry.name for entry in fields(RescaleFactors) if entry.default is entry.default_factory is MISSING]
    missing = [name for name in required if name not in document]
    if missing:
        raise ValueError(f"factors must have {', '.join(required)}, got no {', '.join(missing)}. Add them.")


def _check_agreement(name: str, found: float, wanted: float | None) -> None:
    if wanted is not None and found != wanted:
        raise ValueError(f"{name} must be {wanted}, got {found}. Was it made for another model or window?")
