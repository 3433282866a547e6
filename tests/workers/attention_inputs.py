"""Queries, keys and values of many shapes, and how far two attentions of them may lie apart."""

from typing import NamedTuple

import torch
from torch import Tensor

# Outputs are means of standard normal values; scores and sums over up to 300 keys round a few times
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 16 * 2**-8}
SCALE = 0.3


class Shape(NamedTuple):
    num_queries: int
    num_keys: int
    num_heads: int = 4
    num_key_heads: int = 2
    head_dim: int = 16
    num_documents: int = 2


SHAPES = [
    Shape(300, 300),
    Shape(1, 300),
    Shape(1, 1),
    Shape(17, 300),
    Shape(299, 300),
    Shape(64, 128, 8, 8),
    Shape(100, 257, 6, 1),
    Shape(100, 257, 6, 2, head_dim=12),
    Shape(33, 65, 2, 2, head_dim=7, num_documents=1),
]
WINDOWS = [None, 1, 5, 70, 1000]


def random(shape: Shape, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, the heads of a position side by side in memory, as projections give them."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(shape.num_queries, shape.num_heads), *[(shape.num_keys, shape.num_key_heads)] * 2]
    query, key, value = (
        torch.randn(shape.num_documents, length, heads, shape.head_dim, generator=generator).to(dtype).transpose(1, 2)
        for length, heads in sizes
    )
    return query, key, value


def largest_difference(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return (found.float() - expected.float()).abs().max().item()
