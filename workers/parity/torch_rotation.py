"""Reads cos and sin off an engine's rotation of torch tensors, by rotating unit vectors.

Shapes: N positions, H dimensions per head, P frequency pairs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from workers.parity.probe import Rotation


def rotate_neox(x: Tensor) -> Tensor:
    """Return the second half negated before the first: the partner of each dimension in rotate-half layout."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def rotation_of(module: nn.Module, positions: Sequence[int], *, head_dim: int, rotary_dim: int) -> Rotation:
    """Return the rotation of a module that is called with positions, queries and keys, as vLLM's and SGLang's are.

    Args:
        module: The engine's rotary embedding, of rotate-half layout.
        positions: Positions of one batch.
        head_dim: Dimensions per head.
        rotary_dim: Rotated ones.

    Returns:
        cos and sin: the image of a vector that is 1 in the first half of the rotated dimensions and 0 elsewhere.
    """
    num_pairs = rotary_dim // 2
    query_NH = torch.zeros(len(positions), head_dim)
    query_NH[:, :num_pairs] = 1.0
    rotated_NH, _ = module(torch.tensor(positions), query_NH, query_NH.clone())
    return Rotation(rotated_NH[:, :num_pairs].tolist(), rotated_NH[:, num_pairs:rotary_dim].tolist())
