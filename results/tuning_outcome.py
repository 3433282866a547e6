"""What a fine-tuning did to a model: the same measurements before and after, and the table of them."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from results.versioned_json import VERSION, finite_or_none, parsed

OUTCOME = "outcome.json"
"""File of a run directory; a fine-tuning that has it is finished."""
SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one state of a model was measured at; NaN where it could not be."""

    needle_target: float
    """Needle perplexity at the target length, with the factors."""
    needle_original: float
    """Needle perplexity at the original length, with the rotation of the short window."""
    plain_target: float
    """Perplexity of held-out text in windows of the target length, every token once, with the factors."""
    plain_original: float
    """The same in windows of the original length, with the rotation of the short window."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """How near the tuned model's logits are to the untuned one's in the short window."""

    mean_divergence: float
    """KL(untuned || tuned), mean over positions, nats."""
    same_top: float
    """Share of positions at which the likeliest token is the same, 0..1."""
    num_positions: int
    """Positions compared."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A finished fine-tuning."""

    model: str
    """As its user named it."""
    method: str
    """What made the factors."""
    candidate: str
    """Content key of the factors, see `results.measurement.candidate_key`."""
    original_length: int
    """Tokens."""
    target_length: int
    """Tokens."""
    before: Measured
    """The model as it was."""
    after: Measured
    """The saved folder, with the window switch."""
    after_plain_transformers: Measured | None
    """The saved folder as plain transformers serves it, where that is something else: it multiplies cos and sin by the
    long window's attention temperature in the short window too."""
    kept: Kept
    """Of the saved folder, with the window switch."""
    num_steps: int
    """Optimizer steps."""
    num_tokens: Mapping[str, int]
    """Tokens that were trained on, by window."""
    training_seconds: float
    """All steps together."""
    run_directory: str
    """Absolute."""

    def to_json(self) -> str:
        """Return the outcome as JSON, NaN as null."""
        document = {VERSION: SCHEMA_VERSION, **asdict(self)}
        return json.dumps(_strict(document), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Outcome":
        """Return the outcome that `to_json` wrote.

        Args:
            text: JSON.

        Raises:
            ValueError: It is no JSON object, of another version, or lacks a field.
        """
        document = parsed(text, kind="fine-tuning's outcome", versions=(SCHEMA_VERSION,))
        try:
            for name in ("before", "after", "after_plain_transformers"):
                document[name] = None if document[name] is None else measured_from(document[name])
            document["kept"] = Kept(**_with_nan(document["kept"]))
            return cls(**document)
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"a fine-tuning's outcome must have its fields, got a fault: {error}. Was the file changed?"
            ) from error

    @property
    def target_gap(self) -> float:
        """How much worse the tuned model answers at the target than the untuned one in its own window.

        Needle perplexities: after at the target / before at the original length - 1; NaN where one is not known.
        """
        return self.after.needle_target / self.before.needle_original - 1.0


class OutcomeRow(NamedTuple):
    """A row of the table; texts that are shown."""

    measured: str
    """What and where."""
    before: str
    """The untuned model."""
    after: str
    """The tuned one."""
    change: str
    """Relative; empty where there is none."""


def measured_from(document: Mapping[str, float | None]) -> Measured:
    """Return the measurements that JSON holds, null as NaN.

    Args:
        document: A number or None by name.

    Raises:
        TypeError: A name is unknown or missing.
    """
    return Measured(**_with_nan(document))


def measured_json(measured: Measured) -> dict[str, object]:
    """Return what JSON can hold of measurements; `measured_from` takes it.

    Args:
        measured: Of one state of the model.
    """
    return {name: finite_or_none(value) for name, value in asdict(measured).items()}


def outcome_rows(outcome: Outcome) -> list[OutcomeRow]:
    """Return the table of a fine-tuning: before and after on the same documents.

    Args:
        outcome: Of a finished one.
    """
    target, original = outcome.target_length, outcome.original_length
    names = (
        ("needle_target", f"needle perplexity at {target}"),
        ("needle_original", f"needle perplexity at {original}"),
        ("plain_target", f"perplexity of text at {target}"),
        ("plain_original", f"perplexity of text at {original}"),
    )
    rows = [_row(told, getattr(outcome.before, name), getattr(outcome.after, name)) for name, told in names]
    served = outcome.after_plain_transformers
    if served is not None:
        rows += [
            _row(f"{told}, plain transformers", getattr(outcome.before, name), getattr(served, name))
            for name, told in names
            if name.endswith("_original")
        ]
    kept = outcome.kept
    return [
        *rows,
        OutcomeRow(f"KL to the untuned model at {original}, nats", "0", _number(kept.mean_divergence), ""),
        OutcomeRow(f"same likeliest token at {original}", "100 %", f"{100 * kept.same_top:.1f} %", ""),
    ]


def findings(outcome: Outcome) -> list[str]:
    """Return in words what the table says.

    Args:
        outcome: Of a finished fine-tuning.
    """
    found = [
        f"At {outcome.target_length} tokens the tuned model answers with a needle perplexity of "
        f"{_number(outcome.after.needle_target)}, {_percent(outcome.target_gap)} beside the untuned one's "
        f"{_number(outcome.before.needle_original)} in its own window of {outcome.original_length}."
    ]
    if outcome.after_plain_transformers is not None:
        found.append(
            "Plain transformers multiplies cos and sin by the attention temperature in the short window too: the rows "
            "of plain transformers say what that costs. ropewalk export --to transformers --short-temperature patch "
            "writes model code that does not."
        )
    return found


def _row(told: str, before: float, after: float) -> OutcomeRow:
    return OutcomeRow(told, _number(before), _number(after), _percent(after / before - 1.0))


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "not finite"
    return f"{value:.4f}" if value < 100 else f"{value:.1f}"


def _percent(share: float) -> str:
    return f"{100 * share:+.2f} %" if math.isfinite(share) else "-"


def _strict(value: object) -> object:
    if isinstance(value, Mapping):
        return {name: _strict(item) for name, item in value.items()}
    return finite_or_none(value)


def _with_nan(document: Mapping[str, float | None]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in document.items()}
