"""Every formula by its name."""

from typing import Protocol

from rope.abf import abf_factors
from rope.factors import RescaleFactors
from rope.identity import none_factors
from rope.linear import linear_factors
from rope.llama3 import llama3_factors
from rope.longrope import longrope_factors
from rope.longrope2 import longrope2_factors
from rope.ntk import dynamic_ntk_factors, ntk_critical_factors, ntk_factors
from rope.yarn import yarn_factors


class Method(Protocol):
    """A formula: factors from the model and the window alone, every option of its own left at its default."""

    def __call__(self, rotary_dim: int, base: float, *, original_length: int, target_length: int) -> RescaleFactors:
        """Return the method's factors, with an attention temperature of 1.

        Args:
            rotary_dim: Rotated dimensions per head; even.
            base: RoPE base; above 1.
            original_length: Pre-training window, tokens.
            target_length: Window to reach, tokens; at least original_length.

        Returns:
            Factors, shape (rotary_dim / 2,), whose `method` is the name in METHODS.

        Raises:
            ValueError: rotary_dim is odd or too small, base is not above 1, or a length is too small.
        """


METHODS: dict[str, Method] = {
    "none": none_factors,
    "linear": linear_factors,
    "ntk": ntk_factors,
    "ntk-critical": ntk_critical_factors,
    "dynamic-ntk": dynamic_ntk_factors,
    "yarn": yarn_factors,
    "abf": abf_factors,
    "llama3": llama3_factors,
    "longrope": longrope_factors,
    "longrope2": longrope2_factors,
}
"""Name -> formula, in the order of a table."""

PAPER_TEMPERATURE: dict[str, str] = {
    "none": "none",
    "linear": "none",
    "ntk": "none",
    "ntk-critical": "none",
    "dynamic-ntk": "none",
    "yarn": "yarn",
    "abf": "none",
    "llama3": "none",
    "longrope": "longrope",
    "longrope2": "longrope",
}
"""Name -> the attention temperature, a choice of `temperature.py`, that its paper or its published code goes with."""
