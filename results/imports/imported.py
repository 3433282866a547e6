"""What an import gives, and what its user may say where the source does not."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from rope.break_index import break_index
from rope.factors import RescaleFactors
from rope.geometry import shown
from rope.temperature import attention_temperature


@dataclass(frozen=True, kw_only=True)
class Given:
    """What the user says beside the source; None where that is left to the source."""

    original_length: int | None = None
    """Pre-training window, tokens; goes before what the source says."""
    target_length: int | None = None
    """Window that the factors are for, tokens; goes before what the source says."""
    base: float | None = None
    """RoPE base; must agree with the source's."""
    rotary_dim: int | None = None
    """Rotated dimensions per head; must agree with the source's."""
    attention_temperature: str | float | None = None
    """Temperature beyond the original window, a choice of `temperature.py`; goes before what the source says."""
    short_values: tuple[float, ...] | None = None
    """Factors inside the original window, for a source that has none."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """Factors with the words that a reader of them needs."""

    factors: RescaleFactors
    """What was read."""
    form: str
    """What it was read from: "a list of factors", ..."""
    notes: tuple[str, ...] = ()
    """What was assumed, or does not fit into factors, a sentence each."""


def completed(imported: Imported, given: Given) -> Imported:
    """Return an import with the user's short list and temperature, and with its critical dimension where it shows one.

    Args:
        imported: As the source has it.
        given: What the user says.

    Returns:
        The import, to be kept.

    Raises:
        ValueError: The source has a short list too, or the temperature is none.
    """
    factors = imported.factors
    if given.short_values is not None:
        if factors.short_values is not None:
            raise ValueError(
                "--short-list must go with a source without factors for the original window, got one that has them. "
                "Leave it out."
            )
        factors = replace(factors, short_values=plain_short(given.short_values))
    if given.attention_temperature is not None:
        chosen = attention_temperature(
            given.attention_temperature, scale=factors.scale, original_length=factors.original_length
        )
        factors = factors.with_temperature(chosen)
    if factors.critical_dim is None:
        factors = replace(factors, critical_dim=break_index(factors.values))
    return replace(imported, factors=factors)


def plain_short(values: tuple[float, ...]) -> tuple[float, ...] | None:
    """Return factors of the original window; None where all are 1, which is the model's own rotation.

    Args:
        values: As a source has them.
    """
    return None if all(value == 1.0 for value in values) else values


def agreed(name: str, found: float | None, given: float | None) -> float | None:
    """Return a number that the source says or its user, who may not contradict it.

    Args:
        name: What the number is, in the words of the command line.
        found: What the source says; None where it is silent.
        given: What the user says; None where it is left to the source.

    Returns:
        The number; None where neither says it.

    Raises:
        ValueError: They differ.
    """
    if found is not None and given is not None and found != given:
        raise ValueError(f"--{name} must be what the source says, {found:g}, got {given:g}. Leave it out.")
    return given if found is None else found


def needed(name: str, number: float | None) -> float:
    """Return a number that must be known.

    Args:
        name: What the number is, in the words of the command line.
        number: What is known of it.

    Raises:
        ValueError: It is None.
    """
    if number is None:
        raise ValueError(f"the {name.replace('-', ' ')} must be known, got a source that is silent. Give --{name}.")
    return number


def mapping_of(value: object, what: str) -> Mapping[str, object]:
    """Return a JSON object.

    Args:
        value: What JSON gave.
        what: What it is of, for the message.

    Raises:
        ValueError: It is something else.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{what} must be a JSON object, got {shown(value)}. Check the file.")
    return value
