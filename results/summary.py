"""Summary: what a run found, every method beside the others, and which one won."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from results.versioned_json import finite_or_none, parsed

SCHEMA_VERSION = 1


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
    """Needle perplexity on the documents that the search saw. Lower is better, here and below."""
    heldout_perplexity: float
    """Needle perplexity on documents of the target length that no search saw; this decides."""
    original_perplexity: float
    """Needle perplexity on documents of the original length, with the factors used there too."""

    @property
    def heldout_loss(self) -> float:
        """Needle loss on the held-out documents, nats per token: the log of the perplexity."""
        return math.log(self.heldout_perplexity)


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
    seconds: float
    """Wall time of the run."""
    run_directory: str
    """Folder that holds the rest."""
    methods: tuple[MethodResult, ...]
    """Every method at every temperature that was measured on the held-out documents."""

    def __post_init__(self) -> None:
        """Refuse a run in which nothing could be measured."""
        best_result(self.methods)

    @property
    def winner(self) -> str:
        """Name of the method with the lowest held-out perplexity."""
        return best_result(self.methods).name

    @property
    def gain(self) -> float:
        """How far the winner's held-out loss is below the best formula's, see `heldout_gain`."""
        return heldout_gain(self.methods)

    def to_json(self) -> str:
        """Return the summary as strict JSON, in which null stands for NaN and infinity.

        Returns:
            An object with `schema_version`, `winner`, `gain` and one key per field, indented, ending in a line break.
        """
        found = {"schema_version": SCHEMA_VERSION, "winner": self.winner, "gain": finite_or_none(self.gain)}
        methods = [{key: finite_or_none(value) for key, value in asdict(result).items()} for result in self.methods]
        return json.dumps({**found, **asdict(self), "methods": methods}, indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Summary":
        """Return the summary that `to_json` wrote; winner and gain are worked out again.

        Args:
            text: JSON.

        Returns:
            The summary, equal to the one written; NaN where a perplexity is null.

        Raises:
            ValueError: text is no JSON, has another schema version or other keys, or no method was measured.
        """
        document = parsed(text, kind="summary", version=SCHEMA_VERSION)
        for derived in ("winner", "gain"):
            document.pop(derived, None)
        try:
            methods = tuple(_method_result(entry) for entry in document.pop("methods"))
            return cls(**document, methods=methods)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"a summary must have the keys that Ropewalk writes, got a fault: {error}.") from error


def best_result(methods: Sequence[MethodResult]) -> MethodResult:
    """Return the result with the lowest held-out perplexity; NaN never wins, and a formula wins a draw.

    Args:
        methods: Results of all methods.

    Returns:
        The winner.

    Raises:
        ValueError: No result has a held-out perplexity.
    """
    measured = [result for result in methods if not math.isnan(result.heldout_perplexity)]
    if not measured:
        raise ValueError(
            f"a winner must have a held-out perplexity, got none from {len(methods)} results. "
            "Look for the failures' reasons in the measurements."
        )
    return min(measured, key=lambda result: (result.heldout_perplexity, result.kind != "formula"))


def best_formula(methods: Sequence[MethodResult]) -> MethodResult:
    """Return the formula, with its best temperature, that has the lowest held-out perplexity.

    Args:
        methods: Results of all methods.

    Returns:
        The formula to beat.

    Raises:
        ValueError: No formula has a held-out perplexity.
    """
    return best_result([result for result in methods if result.kind == "formula"])


def heldout_gain(methods: Sequence[MethodResult]) -> float:
    """Return how far the winner's held-out loss is below the best formula's, as a fraction of it.

    Args:
        methods: Results of all methods.

    Returns:
        1 - log(perplexity of the winner) / log(perplexity of the best formula), both on the held-out documents;
        0 where a formula wins, at most 1; NaN where no formula could be measured.

    Raises:
        ValueError: No result has a held-out perplexity.

    Example:
        A winner at e^0.9 beside a formula at e^1.0 gains 0.1: its loss in nats is a tenth lower.
    """
    winner = best_result(methods)
    if winner.kind == "formula":
        return 0.0
    if all(math.isnan(result.heldout_perplexity) for result in methods if result.kind == "formula"):
        return math.nan
    return 1.0 - winner.heldout_loss / best_formula(methods).heldout_loss


def _method_result(entry: dict[str, Any]) -> MethodResult:
    missing = {key: math.nan for key, value in entry.items() if value is None and key.endswith("_perplexity")}
    return MethodResult(**{**entry, **missing})
