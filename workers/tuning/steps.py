"""What one optimizer step gave, over all processes: sums by window, and whether they are numbers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from workers.tuning.packs import Window

WINDOWS: tuple[Window, ...] = get_args(Window)


class WindowSum(NamedTuple):
    """The loss of a step on the packs of one window."""

    sum_nll: float
    """Negative log-likelihood summed over the scored tokens, nats."""
    num_tokens: int
    """Tokens scored."""


@dataclass(kw_only=True)
class StepSums:
    """Sums up a step's micro-batches on one process; nothing waits for the device before `total`."""

    losses: list[tuple[Window, int, Tensor, Tensor]] = field(default_factory=list)
    """Of each micro-batch: its window, its first pack, summed loss, and number of tokens, scalars."""

    def add(self, window: Window, first_pack: int, sum_nll: Tensor, num_tokens: Tensor) -> None:
        """Take in a micro-batch.

        Args:
            window: Of its packs.
            first_pack: Index of its first pack in the stream.
            sum_nll: Summed loss, a scalar, nats.
            num_tokens: Tokens scored, a scalar.
        """
        self.losses.append((window, first_pack, sum_nll, num_tokens))

    def total(
        self, device: torch.device, *, reduce: Callable[[Tensor], Tensor], gather: Callable[[Tensor], Tensor]
    ) -> dict[Window, WindowSum]:
        """Return the sums over all micro-batches of all processes, and begin anew.

        Args:
            device: Where processes exchange tensors.
            reduce: Sums a tensor over all processes.
            gather: Returns a tensor's elements of all processes, end to end.

        Returns:
            Of each window that had packs, its sum.

        Raises:
            ValueError: A loss is no number; the packs are named.
        """
        taken, self.losses = self.losses, []
        sums_W2 = torch.zeros(len(WINDOWS), 2, dtype=torch.float64, device=device)
        for window, _, sum_nll, num_tokens in taken:
            sums_W2[WINDOWS.index(window)] += torch.stack([sum_nll, num_tokens]).to(sums_W2)
        totals = reduce(sums_W2).tolist()
        if not all(isfinite(number) for row in totals for number in row):
            faults = [first for _, first, sum_nll, _ in taken if not isfinite(sum_nll.item())]
            firsts = gather(torch.tensor([min(faults, default=inf)], dtype=torch.float64, device=device))
            raise ValueError(f"the loss must be a number, got none for the packs from {int(firsts.min().item())} on")
        return {
            window: WindowSum(sum_nll, int(num_tokens))
            for window, (sum_nll, num_tokens) in zip(WINDOWS, totals, strict=True)
            if num_tokens
        }


def per_token(sums: Sequence[WindowSum]) -> float:
    """Return the mean loss of several sums, nats per token.

    Args:
        sums: At least one with tokens.
    """
    return sum(one.sum_nll for one in sums) / sum(one.num_tokens for one in sums)
