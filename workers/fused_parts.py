"""The small operations of a model that a fused kernel may compute: its norms, gated activations and rotations.

Shapes: T tokens, N hidden size, W any width, H heads of queries, G of keys, D dimensions per head, R of them rotated.
"""

import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from workers.geometry import rope_geometry

PartName = Literal["RMSNorm", "SwiGLU", "RoPE"]
Computation: TypeAlias = Callable[..., Tensor | tuple[Tensor, Tensor]]
Forward: TypeAlias = Callable[..., object]
"""A module's forward that is not bound to it."""

ROTATE = "apply_rotary_pos_emb"
"""What the function that rotates queries and keys is called in every architecture of transformers."""
WIDE = 1024
"""Width from which a norm is that of hidden states."""


class Part(ABC):
    """Modules of one class and size that all do the same small operation, each on weights of its own."""

    name: PartName
    """What they do."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        """Take them; at least one."""
        self.modules = modules
        """All of them; what holds for the first is taken to hold for all."""

    @abstractmethod
    def inputs(self, num_tokens: int) -> tuple[Tensor, ...]:
        """Return new random tensors, laid out in memory as the model has them, for `plain` and `fused`.

        Args:
            num_tokens: T.
        """

    @abstractmethod
    def plain(self, *inputs: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Compute the operation as the model's own code does."""

    def fused(self, compute: Computation, *inputs: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Compute it by a kernel."""
        return compute(*inputs)

    @abstractmethod
    def forward(self, compute: Computation) -> Forward:
        """Return a forward of the modules in which a kernel computes the operation.

        Args:
            compute: The kernel.
        """


class NormPart(Part):
    """Norms by the root of the mean square. A kernel takes (hidden, weight_W, eps)."""

    name = "RMSNorm"

    @staticmethod
    def key(module: nn.Module) -> tuple[object, ...] | None:
        """Return what tells such modules from others, None for a module that is none."""
        weight = getattr(module, "weight", None)
        if not (type(module).__name__.endswith("RMSNorm") and isinstance(weight, nn.Parameter) and _eps(module)):
            return None
        return type(module), weight.shape, weight.device, _eps(module)

    def inputs(self, num_tokens: int) -> tuple[Tensor, ...]:
        """Return rows whose mean squares go from below any eps to large ones, shape (1, T, any, W)."""
        weight_W = _weight(self.modules[0])
        num_heads = max(1, WIDE // len(weight_W))  # a narrow one is that of each head
        sizes_T11 = torch.logspace(-4, 1, num_tokens, device=weight_W.device)[:, None, None]
        return ((sizes_T11 * _random((1, num_tokens, num_heads, len(weight_W)), weight_W)).to(weight_W.dtype),)

    def plain(self, *inputs: Tensor) -> Tensor:
        """Compute it by the module's class."""
        return cast(Tensor, type(self.modules[0]).forward(self.modules[0], *inputs))

    def fused(self, compute: Computation, *inputs: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Compute it by a kernel, with the first module's weight."""
        return compute(*inputs, _weight(self.modules[0]), _eps(self.modules[0]))

    def forward(self, compute: Computation) -> Forward:
        """Return a forward that is the kernel."""
        return lambda module, hidden: compute(hidden, _weight(module), _eps(module))


class GatePart(Part):
    """The activation between an MLP's matrices, SiLU(gate) * up. A kernel takes (gate, up)."""

    name = "SwiGLU"

    @staticmethod
    def key(module: nn.Module) -> tuple[object, ...] | None:
        """Return what tells such modules from others, None for a module that is none."""
        activation = getattr(module, "act_fn", None) or getattr(module, "activation_fn", None)
        names = [name for name in ("gate_proj", "up_proj", "gate_up_proj") if hasattr(module, name)]
        has_all = names in (["gate_proj", "up_proj"], ["gate_up_proj"]) and hasattr(module, "down_proj")
        if not has_all or type(activation).__name__ not in ("SiLU", "SiLUActivation"):
            return None
        linears = [getattr(module, name) for name in names]
        if not all(isinstance(linear, nn.Linear) for linear in linears):
            return None
        weight = linears[0].weight
        hidden = _random((1, 2, linears[0].in_features), weight).to(weight.dtype)
        # Some scale the gate or the output besides; then this is another module
        same = torch.equal(_mlp(_swiglu, module, hidden), type(module).forward(module, hidden))
        return (type(module), weight.shape, weight.device) if same else None

    def inputs(self, num_tokens: int) -> tuple[Tensor, ...]:
        """Return what the first module's matrices make of random hidden states, shapes (1, T, W)."""
        first = cast(nn.Linear, getattr(self.modules[0], "gate_up_proj", None) or self.modules[0].gate_proj)
        hidden = _random((1, num_tokens, first.in_features), first.weight).to(first.weight.dtype)
        return _gate_and_up(self.modules[0], hidden)

    def plain(self, *inputs: Tensor) -> Tensor:
        """Compute it in two steps."""
        return _swiglu(*inputs)

    def forward(self, compute: Computation) -> Forward:
        """Return the MLP with the kernel in it."""
        return partial(_mlp, compute)


class RotationPart(Part):
    """The rotation of queries and keys by cos and sin, which the rotary module gives; that one is not touched.

    A kernel takes (query_1HTD, key_1GTD, cos_1TR, sin_1TR), returns the first two rotated, and may overwrite them.
    """

    name = "RoPE"

    def __init__(self, modules: Sequence[nn.Module], model: PreTrainedModel) -> None:
        """Take attention modules and their model."""
        super().__init__(modules)
        config = model.config.get_text_config()
        self._like = next(modules[0].parameters())
        num_heads: int = config.num_attention_heads
        self._heads = (num_heads, getattr(config, "num_key_value_heads", None) or num_heads)
        self._head_dim = getattr(config, "head_dim", None) or config.hidden_size // num_heads
        self._rotary_dim = rope_geometry(model.config).rotary_dim
        self._rotate: Computation = type(modules[0]).forward.__globals__[ROTATE]

    @staticmethod
    def key(module: nn.Module) -> tuple[object, ...] | None:
        """Return what tells such modules from others, None for a module that is none."""
        forward = type(module).forward
        code = getattr(forward, "__code__", None)
        calls_it = code is not None and ROTATE in code.co_names and ROTATE in forward.__globals__
        parameter = next(module.parameters(), None)
        return (type(module), parameter.device) if calls_it and parameter is not None else None

    def inputs(self, num_tokens: int) -> tuple[Tensor, ...]:
        """Return queries and keys, heads of a token side by side, and cos and sin of any angles, each twice."""
        shapes = [(1, num_tokens, num_heads, self._head_dim) for num_heads in self._heads]
        query, key = (_random(shape, self._like).to(self._like.dtype).transpose(1, 2) for shape in shapes)
        angles = 100 * _random((1, num_tokens, self._rotary_dim // 2), self._like)
        twice = torch.cat((angles, angles), dim=-1)
        return query, key, twice.cos().to(self._like.dtype), twice.sin().to(self._like.dtype)

    def plain(self, *inputs: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Compute it by the architecture's function."""
        return self._rotate(*inputs)

    def forward(self, compute: Computation) -> Forward:
        """Return the attention's own code, in which the function's name means the kernel: for these modules alone."""
        own = type(self.modules[0]).forward
        names = {**own.__globals__, ROTATE: partial(_rotated, self._rotate, compute)}
        copy = types.FunctionType(own.__code__, names, own.__name__, own.__defaults__, own.__closure__)
        copy.__kwdefaults__ = own.__kwdefaults__
        return copy


def parts_of(model: PreTrainedModel) -> Iterator[Part]:
    """Yield the parts of a model that a kernel may compute.

    Args:
        model: A causal LM. Modules that have a forward of their own, that of an offloader say, are left alone.
    """
    alike: dict[tuple[object, ...], list[nn.Module]] = {}
    for module in model.modules():
        for kind in (NormPart, GatePart, RotationPart):
            if "forward" not in module.__dict__ and (key := kind.key(module)):
                alike.setdefault((kind.name, *key), []).append(module)
    for (name, *_), modules in alike.items():
        if name == RotationPart.name:
            yield RotationPart(modules, model)
        else:
            yield NormPart(modules) if name == NormPart.name else GatePart(modules)


def _eps(module: nn.Module) -> float | None:
    eps: float | None = getattr(module, "variance_epsilon", None) or getattr(module, "eps", None)
    return eps


def _weight(module: nn.Module) -> Tensor:
    return cast(Tensor, module.weight)


def _random(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return standard normal numbers, float32, without touching the seed of others."""
    generator = torch.Generator(like.device).manual_seed(0)
    return torch.randn(shape, generator=generator, device=like.device)


def _swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return functional.silu(gate) * up


def _gate_and_up(module: nn.Module, hidden: Tensor) -> tuple[Tensor, Tensor]:
    if hasattr(module, "gate_up_proj"):
        gate, up = cast(nn.Linear, module.gate_up_proj)(hidden).chunk(2, dim=-1)
        return gate, up
    return cast(nn.Linear, module.gate_proj)(hidden), cast(nn.Linear, module.up_proj)(hidden)


def _mlp(compute: Computation, module: nn.Module, hidden: Tensor) -> Tensor:
    return cast(Tensor, cast(nn.Linear, module.down_proj)(compute(*_gate_and_up(module, hidden))))


def _rotated(
    rotate: Computation,
    compute: Computation,
    query: Tensor,
    key: Tensor,
    cos: Tensor,
    sin: Tensor,
    *args: object,
    **kwargs: object,
) -> Tensor | tuple[Tensor, Tensor]:
    """Rotate by the kernel what is laid out as it was proved for, everything else by the architecture's function."""
    as_proved = query.dim() == 4 and query.shape[2] == key.shape[2] == cos.shape[-2] and cos.dtype == query.dtype
    if not as_proved or args or kwargs:
        return rotate(query, key, cos, sin, *args, **kwargs)
    return compute(query, key, cos, sin)
