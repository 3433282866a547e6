"""Summary: what a run found, every method beside the others, and which one won."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from results.speed import Speed
from results.versioned_json import finite_or_none, parsed

SUMMARY = "summary.json"
"""Name of the summary in the run directory; written last: a run directory that holds it is finished."""
SCHEMA_VERSION = 3


@dataclass(frozen=True, kw_only=True)
class MethodResult:
    """What one method scored at one attention temperature; NaN where nothing could be measured.

    A method that was measured at several temperatures has as many results of one name.
    """

    name: str
    """The method's name."""
    kind: Literal["formula", "searched"]
    """Whether its factors come from a formula or from a search."""
    critical_dim: int | None
    """Frequency pair, from 0, from which on the factors were free; None where the method knows none."""
    attention_temperature: float
    """Multiplies cos and sin in the long window."""
    search_perplexity: float
    """Needle perplexity on documents that the search saw. Lower is better, here and below."""
    validation_perplexity: float = math.nan
    """Needle perplexity on documents that choose among the finalists; NaN for what was no finalist or was dropped."""
    heldout_perplexity: float
    """Needle perplexity on documents of the target length that neither search nor choice saw."""
    original_perplexity: float
    """Needle perplexity on documents of the original length, with the factors used there too."""
    is_picked: bool = False
    """Whether it was chosen: by the validation documents among the searched finalists, or as the knee of a front."""

    @property
    def heldout_loss(self) -> float:
        """Needle loss on the held-out documents, nats per token: the log of the perplexity."""
        return math.log(self.heldout_perplexity)

    def loss(self, *, both_lengths: bool) -> float:
        """Return what it is compared by on held-out documents, nats per token.

        Args:
            both_lengths: Whether the loss at the original length is added, as for a list that is used at both.
        """
        return self.heldout_loss + (math.log(self.original_perplexity) if both_lengths else 0.0)

    @property
    def gap(self) -> float:
        """How much more it loses on the held-out documents than on the search's, nats per token; NaN if unknown."""
        return math.log(self.heldout_perplexity) - math.log(self.search_perplexity)


@dataclass(frozen=True, kw_only=True)
class ParetoPoint:
    """A candidate of the front of two objectives, as the search measured it."""

    name: str
    """Its method."""
    attention_temperature: float
    """Multiplies cos and sin."""
    long_perplexity: float
    """Needle perplexity at the target length."""
    short_ratio: float
    """Needle perplexity at the original length, over the unscaled model's."""
    is_knee: bool
    """Whether it is the front's knee."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a run found, as `summary.json` holds it; who won follows from the methods.

    Raises:
        ValueError: No method has a held-out perplexity, so that nothing was found.
    """

    model: str
    """The model, as its user named it."""
    original_length: int
    """Pre-training window, tokens."""
    target_length: int
    """Window that was searched for, tokens."""
    seed: int
    """The one seed."""
    num_document_forwards: int
    """Documents that went through the model, all splits together."""
    num_search_forwards: int
    """Forwards of the search's documents, those of the formulas among them, a gradient counted as three."""
    seconds: float
    """Wall time of the run."""
    run_directory: str
    """Folder that holds the rest."""
    methods: tuple[MethodResult, ...]
    """Every method that was measured on the held-out documents."""
    front: tuple[ParetoPoint, ...] = ()
    """The Pareto front of the search, best at the target length first; empty with one objective."""
    speed: Speed = field(default_factory=Speed)
    """What the workers computed."""

    def __post_init__(self) -> None:
        """Refuse a run in which nothing could be measured."""
        best_result(self.methods)

    @property
    def winning_result(self) -> MethodResult:
        """The result that won, see `best_result`."""
        return best_result(self.methods, both_lengths=bool(self.front))

    @property
    def winner(self) -> str:
        """Name of the method that won."""
        return self.winning_result.name

    @property
    def gain(self) -> float:
        """How far the winner's held-out loss is below the best formula's, see `heldout_gain`."""
        return heldout_gain(self.methods, both_lengths=bool(self.front))

    def to_json(self) -> str:
        """Return the summary as strict JSON, in which null stands for NaN and infinity.

        Returns:
            An object with `schema_version`, `winner`, `gain`, `gap` and one key per field, indented, ending in a line
            break.
        """
        derived = {"gain": self.gain, "gap": self.winning_result.gap}
        found = {"schema_version": SCHEMA_VERSION, "winner": self.winner}
        found |= {key: finite_or_none(value) for key, value in derived.items()}
        methods = [{key: finite_or_none(value) for key, value in asdict(result).items()} for result in self.methods]
        fields = {**asdict(self), "methods": methods, "speed": self.speed.to_record()}
        return json.dumps({**found, **fields}, indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Summary":
        """Return the summary that `to_json` wrote; winner and gain are worked out again.

        Args:
            text: JSON.

        Returns:
            The summary, equal to the one written; NaN where a perplexity is null. One of version 2 says nothing of the
            speed.

        Raises:
            ValueError: text is no JSON, has another schema version or other keys, or no method was measured.
        """
        document = parsed(text, kind="summary", versions=(2, SCHEMA_VERSION))
        speed = Speed.from_record(document.pop("speed", None))
        for derived in ("winner", "gain", "gap"):
            document.pop(derived, None)
        try:
            methods = tuple(_method_result(entry) for entry in document.pop("methods"))
            front = tuple(ParetoPoint(**entry) for entry in document.pop("front"))
            return cls(**document, methods=methods, front=front, speed=speed)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"a summary must have the keys that Ropewalk writes, got a fault: {error}.") from error


def best_result(methods: Sequence[MethodResult], *, both_lengths: bool = False) -> MethodResult:
    """Return the winner: what validation picked among the searched, if it beats every formula on held-out documents.

    So the held-out documents never choose among searched candidates, and what they say of the winner is no lucky
    draw; the best formula wins where the pick is no better than it. Where nothing was picked, all are compared.

    Args:
        methods: Results of all methods.
        both_lengths: Whether they are compared by the sum of their losses at the target and the original length.

    Returns:
        The winner; NaN never wins, and a formula wins a draw.

    Raises:
        ValueError: No result has a held-out perplexity.
    """
    has_pick = any(result.is_picked for result in methods)
    able = [result for result in methods if result.kind == "formula" or result.is_picked or not has_pick]
    measured = [result for result in able if not math.isnan(result.loss(both_lengths=both_lengths))]
    if not measured:
        raise ValueError(
            f"a winner must have a held-out perplexity, got none from {len(methods)} results. "
            "Look for the failures' reasons in the measurements."
        )
    return min(measured, key=lambda result: (result.loss(both_lengths=both_lengths), result.kind != "formula"))


def best_formula(methods: Sequence[MethodResult], *, both_lengths: bool = False) -> MethodResult:
    """Return the formula, with its best temperature, that has the lowest held-out perplexity.

    Args:
        methods, both_lengths: As `best_result`.

    Returns:
        The formula to beat.

    Raises:
        ValueError: No formula has a held-out perplexity.
    """
    return best_result([result for result in methods if result.kind == "formula"], both_lengths=both_lengths)


def heldout_gain(methods: Sequence[MethodResult], *, both_lengths: bool = False) -> float:
    """Return how far the winner's held-out loss is below the best formula's, as a fraction of it.

    Args:
        methods, both_lengths: As `best_result`.

    Returns:
        1 - loss of the winner / loss of the best formula, both on the held-out documents; 0 where a formula wins, at
        most 1; NaN where no formula could be measured.

    Raises:
        ValueError: No result has a held-out perplexity.

    Example:
        A winner at e^0.9 beside a formula at e^1.0 gains 0.1: its loss in nats is a tenth lower.
    """
    winner = best_result(methods, both_lengths=both_lengths)
    if winner.kind == "formula":
        return 0.0
    if all(math.isnan(result.loss(both_lengths=both_lengths)) for result in methods if result.kind == "formula"):
        return math.nan
    formula = best_formula(methods, both_lengths=both_lengths)
    return 1.0 - winner.loss(both_lengths=both_lengths) / formula.loss(both_lengths=both_lengths)


def _method_result(entry: dict[str, Any]) -> MethodResult:
    missing = {key: math.nan for key, value in entry.items() if value is None and key.endswith("_perplexity")}
    return MethodResult(**{**entry, **missing})
