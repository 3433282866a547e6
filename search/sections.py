"""The sections of a search's configuration that have no other owner: documents, spaces, formulas."""

from dataclasses import dataclass, field, fields
from typing import Literal

from rope.methods import METHODS
from search.parametrization import FEWEST_KNOTS


@dataclass(frozen=True, kw_only=True)
class DocumentsConfig:
    """The needle documents that score candidates, and those that judge them."""

    column: str = "text"
    """Column of the text in JSON lines, Parquet and datasets."""
    prompt: Literal["ruler", "chat"] = "ruler"
    """RULER's prompt for base models, or the same through the tokenizer's chat template."""
    num_search: int | None = None
    """Documents of the target length for the search; default: the paper's 10 for longrope2, 400 for gradient and
    cmaes, which move over them, and 16 for the others."""
    num_per_candidate: int | None = None
    """How many of them each candidate is measured on; default: 4 for gradient, 8 for cmaes, all for the others."""
    num_formula: int | None = None
    """How many of them each formula and each finalist is measured on; default: up to 24."""
    num_short: int = 8
    """Documents of the original length that every candidate is measured on with the objective short."""
    num_validation: int = 24
    """Documents of the target length, of other text and needles, that choose among the finalists."""
    num_heldout: int = 24
    """Documents of the target length, of yet other text and needles, on which winner and formulas are reported."""
    num_original: int = 10
    """Held-out documents of the original length."""
    num_needles: int = 1
    """Needles in each search document, and questions at its end; the other documents have one."""
    batch_size: int | None = None
    """Documents in one forward; default: as many as a GPU was found to be fastest with when the run starts, 1 on a
    CPU. Documents whose gradient is wanted go one by one."""

    def __post_init__(self) -> None:
        for field_ in fields(self):
            value = getattr(self, field_.name)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"documents.{field_.name} must be at least 1, got {value}. Raise it.")


@dataclass(frozen=True, kw_only=True)
class SpaceConfig:
    """What the search is free to change."""

    critical_dims: list[int] | None = None
    """Candidates for the real critical dimension (pair indices from 0); default: from ten periods inside the
    original window up to the theoretical one."""
    low: float | None = None
    """Smallest factor from the critical dimension up; default: the scale, as in the paper."""
    high: float | None = None
    """Largest factor; default: twice the scale, as in the paper."""
    step: float = 0.01
    """Grid step of the factors."""
    attention_temperature: float | str = "longrope"
    """Temperature of every candidate: none, longrope, yarn, a number, or best (that of the best formula)."""


@dataclass(frozen=True, kw_only=True)
class MonotoneConfig:
    """What the algorithms other than longrope2 are free to change: factors that do not decrease, and a temperature."""

    start: Literal["best", "yarn", "ntk"] = "best"
    """Where the search starts: the best formula with its best temperature, YaRN with its own, or NTK at the
    theoretical critical dimension with the temperature of the best formula."""
    free: Literal["all", "critical"] = "all"
    """Free pairs: all, or those from the theoretical critical dimension up, those below following the paper's law."""
    knots: int | None = None
    """Knots of a monotone spline of log lambda over the pairs, so that many pairs need few coordinates; default: none,
    every free pair has its own."""
    high: float | None = None
    """Largest factor; default: four times the scale, or the largest of the start if that is more."""
    free_temperature: bool = True
    """Whether the attention temperature is searched too, or stays that of the start."""

    def __post_init__(self) -> None:
        if self.knots is not None and self.free == "critical":
            raise ValueError("monotone.knots must go with monotone.free all, got critical. Drop one of them.")
        if self.knots is not None and self.knots < FEWEST_KNOTS:
            raise ValueError(f"monotone.knots must be at least {FEWEST_KNOTS}, got {self.knots}. Raise it.")


@dataclass(frozen=True, kw_only=True)
class FormulasConfig:
    """The closed-form methods that are measured first, in the same study and on the same documents."""

    methods: list[str] = field(default_factory=lambda: list(METHODS))
    """Names of methods."""
    temperatures: list[float | str] = field(default_factory=lambda: ["paper", "none", "longrope", "yarn"])
    """Temperatures that each method is measured with: paper (its own), none, longrope, yarn or a number. The one
    that the search uses is always measured too."""
    files: list[str] = field(default_factory=list)
    """Files of factors, or run directories, measured beside the formulas with their own temperatures: the search
    starts from the best of all. `ropewalk import` makes such files of models that exist."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.methods) - set(METHODS))
        if unknown or not self.methods:
            raise ValueError(
                f"formulas.methods must name at least one of {', '.join(METHODS)}, got "
                f"{', '.join(unknown) or 'an empty list'}. Choose from these."
            )
        if not self.temperatures or "best" in self.temperatures:
            raise ValueError(
                f"formulas.temperatures must hold at least one of paper, none, longrope, yarn or a number, got "
                f"{self.temperatures}. Choose from these."
            )
