"""Installs rescale factors in a loaded model, in place; restores the model; proves that factors take effect.

Shapes: B documents, T tokens, D rotated dimensions per head, P frequency pairs (D / 2).
"""

from collections.abc import Mapping
from functools import partial
from types import TracebackType
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from rope.factors import RescaleFactors
from rope.identity import none_factors
from rope.linear import linear_factors
from workers.geometry import FULL_ATTENTION, RopeGeometry, rope_geometry

PROBE_SCALE = 8
"""How far `check_effect` moves the frequencies: far enough to be seen in bfloat16."""


class RopePatch:
    """The rotary embedding of one model, and the only hand that changes it.

    Factors are relative to the unscaled frequencies 1 / base^(2i/d), whatever scaling the model was saved with, and
    they replace that scaling whole: factors of 1 make a Llama 3.1 rotate as if it had no `llama3` scaling, and the
    attention temperature takes the place of the saved attention factor. `restore` brings the saved scaling back.

    Frequencies are float32 whatever the model's precision, and computed as transformers computes those of a
    configuration, so that what is measured is what the exported factors give; with factors of 1 an unscaled model
    stays as it was, bit for bit.

    A model needs one patch only, `LoadedModel.patch`. As a context manager it restores the model at the end:

        with patch:
            patch.install(factors)
            model(...)
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Find every rotary module of a model; nothing is changed yet.

        Args:
            model: A causal LM whose rotary modules hold `inv_freq` buffers and an `attention_scaling`, as those of
                transformers do.

        Raises:
            ValueError: The model has no such module, or one that rotates otherwise than its configuration says.
        """
        self.geometry: RopeGeometry = rope_geometry(model.config)
        self._model = model
        self.sites = _rotary_sites(model)
        """Every rotation that factors go to."""
        self._wavelengths_P = _wavelengths(self.geometry)
        self._native: list[Rotation] = []
        self._hooks: list[RemovableHandle] = []
        if not self.sites:
            raise ValueError(
                "the model must have a rotary module with inv_freq and attention_scaling, got "
                f"{type(model).__name__} with none. Choose another model."
            )
        for site in self.sites:
            _check_rotation(site.rotation(), self.geometry, self._wavelengths_P)

    @property
    def kept_layer_types(self) -> list[str]:
        """Layer types whose rotation is never rescaled; empty where all layers share one rotation."""
        names = {name for site in self.sites if isinstance(site.rope_types, dict) for name in site.rope_types}
        return sorted(names - {FULL_ATTENTION})

    def install(self, factors: RescaleFactors) -> None:
        """Make the model rotate with these factors until others are installed or it is restored.

        Positions below `num_start_tokens` keep their original angle; the attention temperature is theirs too, since
        it belongs to the whole softmax.

        Args:
            factors: Rescale factors made for this model's rotary_dim and base.

        Raises:
            ValueError: The factors are for another rotary_dim or base.
        """
        _check_factors(factors, self.geometry)
        self._remove_hooks()
        self._native = self._native or [site.rotation() for site in self.sites]
        # In float32 and in the order of transformers' longrope, eq. 8
        inv_freq_P = 1.0 / (torch.tensor(factors.values, dtype=torch.float32) * self._wavelengths_P)
        unscaled_P = 1.0 / self._wavelengths_P
        for site, native in zip(self.sites, self._native, strict=True):
            device = native.inv_freq.device
            # "default" keeps the dynamic and longrope modules from computing frequencies of their own over ours
            site.rotate(Rotation(inv_freq_P.to(device), factors.attention_temperature, "default"))
            if factors.num_start_tokens:
                hook = partial(_keep_start, site, unscaled_P.to(device), factors.num_start_tokens)
                self._hooks.append(site.module.register_forward_hook(hook, with_kwargs=True))

    def restore(self) -> None:
        """Give the model back the rotation it was loaded with, bit for bit; harmless where nothing is installed."""
        self._remove_hooks()
        for site, native in zip(self.sites, self._native, strict=False):
            site.rotate(native)
        self._native = []

    def check_effect(self, input_ids_BT: Tensor) -> None:
        """Prove that factors and attention temperature change the logits; the model is restored afterwards.

        A few dozen tokens are enough. Start tokens are not probed.

        Args:
            input_ids_BT: Token ids, shape (documents, tokens), at least two tokens, on the model's device.

        Raises:
            ValueError: Changed factors or a changed attention temperature leave the logits as they were.
        """
        rotary_dim, base = self.geometry.rotary_dim, self.geometry.base
        unscaled = none_factors(rotary_dim, base, original_length=1, target_length=PROBE_SCALE)
        changes = {
            "rescale factors": linear_factors(rotary_dim, base, original_length=1, target_length=PROBE_SCALE),
            "the attention temperature": unscaled.with_temperature(PROBE_SCALE),
        }
        with self:
            plain_BTV = self._logits(unscaled, input_ids_BT)
            for name, factors in changes.items():
                if torch.equal(plain_BTV, self._logits(factors, input_ids_BT)):
                    raise ValueError(
                        f"{name} must change the logits, got the same bits with and without from "
                        f"{type(self._model).__name__}. It rotates elsewhere than in its rotary modules; "
                        "choose another model."
                    )

    def __enter__(self) -> Self:
        """Return the patch; `install` is for the caller."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Restore the model."""
        self.restore()

    @torch.inference_mode()
    def _logits(self, factors: RescaleFactors, input_ids_BT: Tensor) -> Tensor:
        self.install(factors)
        logits_BTV: Tensor = self._model(input_ids=input_ids_BT, use_cache=False).logits
        return logits_BTV

    def _remove_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


def position_ids(args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> Tensor:
    """Return the positions with which a rotary module was called, shape (documents, tokens).

    Args:
        args, kwargs: Arguments of the call.
    """
    return kwargs["position_ids"] if "position_ids" in kwargs else args[1]


class Rotation(NamedTuple):
    """What a rotary module turns by."""

    inv_freq: Tensor
    """Radians per token, shape (P,)."""
    attention_scaling: float
    """What cos and sin are multiplied by."""
    rope_type: str
    """The scaling, as transformers names it."""


class RotarySite:
    """One rotation inside a rotary module: its only one, or that of full attention where it has one per layer type."""

    def __init__(self, module: nn.Module, layer_type: str) -> None:
        """Name the attributes; `layer_type` is empty for a module with one rotation."""
        self.module = module
        """The rotary module."""
        self._layer_type = layer_type
        prefix = f"{layer_type}_" if layer_type else ""
        self._inv_freq = f"{prefix}inv_freq"
        self._attention_scaling = f"{prefix}attention_scaling"

    @property
    def exists(self) -> bool:
        """Whether the module has this rotation."""
        return self._inv_freq in self.module._buffers and hasattr(self.module, self._attention_scaling)

    @property
    def rope_types(self) -> str | dict[str, str]:
        """The module's scaling, or that of each layer type."""
        types: str | dict[str, str] = getattr(self.module, "rope_type", "default")
        return types

    def rotation(self) -> Rotation:
        """Return what the module turns by now."""
        types = self.rope_types
        return Rotation(
            getattr(self.module, self._inv_freq),
            getattr(self.module, self._attention_scaling),
            types[self._layer_type] if isinstance(types, dict) else types,
        )

    def serves(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> bool:
        """Return whether a call of the module asks for this rotation.

        Args:
            args, kwargs: Arguments of the call; one of them is the layer type where there are several.
        """
        values = (*args, *kwargs.values())
        return not self._layer_type or any(isinstance(value, str) and value == self._layer_type for value in values)

    def rotate(self, rotation: Rotation) -> None:
        """Make the module turn otherwise.

        Args:
            rotation: Its frequencies may be of any precision.
        """
        # A new tensor, not a copy into the old one: that keeps the native one untouched and this one float32
        self.turn(rotation.inv_freq)
        setattr(self.module, self._attention_scaling, rotation.attention_scaling)
        types = self.rope_types
        if isinstance(types, dict):
            types[self._layer_type] = rotation.rope_type
        else:
            self.module.rope_type = rotation.rope_type  # type: ignore[assignment]

    def turn(self, inv_freq_P: Tensor) -> None:
        """Exchange the frequencies alone.

        Args:
            inv_freq_P: Radians per token, shape (P,).
        """
        setattr(self.module, self._inv_freq, inv_freq_P)


def _rotary_sites(model: PreTrainedModel) -> list[RotarySite]:
    sites = [RotarySite(module, layer_type) for module in model.modules() for layer_type in ("", FULL_ATTENTION)]
    return [site for site in sites if site.exists]


def _wavelengths(geometry: RopeGeometry) -> Tensor:
    """Return base^(2i/d), shape (P,), float32: the wavelengths over 2 pi, as transformers computes them."""
    rotary_dim = geometry.rotary_dim
    return geometry.base ** (torch.arange(0, rotary_dim, 2, dtype=torch.int64).to(torch.float32) / rotary_dim)


def _check_rotation(rotation: Rotation, geometry: RopeGeometry, wavelengths_P: Tensor) -> None:
    inv_freq_P = rotation.inv_freq.detach().to("cpu", torch.float32)
    if inv_freq_P.numel() != geometry.rotary_dim // 2:
        raise ValueError(
            f"a rotary module must have {geometry.rotary_dim // 2} frequencies (rotary_dim {geometry.rotary_dim} / 2 "
            f"in the configuration), got {inv_freq_P.numel()}. Correct head_dim or partial_rotary_factor."
        )
    # 1 %: a module that was cast to bfloat16 holds 8 bits of each frequency
    if rotation.rope_type == "default" and not torch.allclose(inv_freq_P * wavelengths_P, torch.ones(()), rtol=0.01):
        raise ValueError(
            f"a rotary module must turn by 1 / base^(2i/d) with the configuration's base {geometry.base:g}, got other "
            "frequencies. Correct rope_theta."
        )


def _check_factors(factors: RescaleFactors, geometry: RopeGeometry) -> None:
    if (factors.rotary_dim, factors.base) != (geometry.rotary_dim, geometry.base):
        raise ValueError(
            f"factors must be for rotary_dim {geometry.rotary_dim} and base {geometry.base:g} as the model has them, "
            f"got rotary_dim {factors.rotary_dim} and base {factors.base:g}. Were they made for another model?"
        )


def _keep_start(
    site: RotarySite,
    unscaled_P: Tensor,
    num_start_tokens: int,
    module: nn.Module,
    args: tuple[Tensor, ...],
    kwargs: dict[str, Tensor],
    rescaled: tuple[Tensor, Tensor],
) -> tuple[Tensor, ...]:
    """Return cos and sin with the first positions as they were, whatever layout the module gives them."""
    position_ids_BT = position_ids(args, kwargs)
    inv_freq_P = site.rotation().inv_freq
    site.turn(unscaled_P)
    try:
        unscaled = module.forward(*args, **kwargs)
    finally:
        site.turn(inv_freq_P)
    start_BT1 = (position_ids_BT < num_start_tokens).unsqueeze(-1)
    return tuple(torch.where(start_BT1, *pair) for pair in zip(unscaled, rescaled, strict=True))
