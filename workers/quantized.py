"""An 8-bit copy of a model that ranks candidates; what is reported is measured with the model itself."""

import copy
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from needles.document import NeedleDocument
from results.measurement import Measurement
from rope.factors import RescaleFactors
from workers.model import LoadedModel
from workers.rope_patch import RopePatch
from workers.scoring import ModelLoader, NeedleScoring

if TYPE_CHECKING:
    from torchao.core.config import AOBaseConfig

RankingWeights = Literal["int8", "fp8"]
"""int8: weights alone, a scale per output, half the memory of bfloat16 and no faster where a GPU is full. fp8: float8
weights and activations, a scale per output and per token, so that no token's score depends on its neighbours."""

FP8_CAPABILITY = (8, 9)
"""Compute capability of the first GPUs that multiply float8: NVIDIA's Ada."""

logger = logging.getLogger(__name__)


def load_ranked_scoring(
    documents: Sequence[NeedleDocument], *, load: ModelLoader, weights: RankingWeights
) -> "RankedScoring":
    """Return a scoring that ranks by an 8-bit copy; `partial(load_ranked_scoring, ...)` is a `ScoringFactory`.

    Args:
        documents: As `NeedleScoring`.
        load: Loads the model.
        weights: What the copy's weights become.

    Returns:
        The scoring.

    Raises:
        ValueError: As `load`, `ranking_model` and `NeedleScoring` do.
    """
    loaded = load()
    model = ranking_model(loaded.model, weights)
    return RankedScoring(documents, exact=loaded, ranking=replace(loaded, model=model, patch=RopePatch(model)))


class RankedScoring:
    """Scores the search documents with one model and all others with another.

    There is no gradient: a matrix product of float8 has none.
    """

    def __init__(self, documents: Sequence[NeedleDocument], *, exact: LoadedModel, ranking: LoadedModel) -> None:
        """Take documents and models.

        Args:
            documents: What it may be asked to read; ids distinct.
            exact: Scores documents of any split but search: what is validated and reported.
            ranking: Scores those of the split search, what candidates are ranked on.

        Raises:
            ValueError: As `NeedleScoring` does.
        """
        searched = [document for document in documents if document.split == "search"]
        others = [document for document in documents if document.split != "search"]
        self._ids = {document.id for document in searched}
        self._ranking = NeedleScoring(ranking, searched) if searched else None
        self._exact = NeedleScoring(exact, others) if others or not searched else None
        self.speed = next(scoring.speed for scoring in (self._ranking, self._exact) if scoring is not None)
        """What the device can do, in the precision of the model itself."""

    def score(self, candidate: RescaleFactors, document_ids: Sequence[str]) -> list[Measurement]:
        """Measure factors on documents, each with its own model.

        Args:
            candidate: Factors to install.
            document_ids: Ids of documents given at construction.

        Returns:
            One measurement per document, in the order of the ids.
        """
        found: dict[str, Measurement] = {}
        for scoring, is_searched in ((self._ranking, True), (self._exact, False)):
            mine = [document_id for document_id in document_ids if (document_id in self._ids) is is_searched]
            if scoring is not None and mine:
                found |= {measurement.document: measurement for measurement in scoring.score(candidate, mine)}
        return [found[document_id] for document_id in document_ids]


def ranking_model(model: PreTrainedModel, weights: RankingWeights) -> PreTrainedModel:
    """Return a copy whose decoder layers multiply by 8-bit weights; all other weights are those of the model.

    Embeddings, norms, head, and whatever is no linear layer (the experts of a mixture, say) stay as they are and are
    shared, not copied. The rotary module is the copy's own: it needs a `RopePatch` of its own.

    Args:
        model: A causal LM; it is not changed.
        weights: What the weights of linear layers become.

    Returns:
        The copy, on the model's devices; its gradients are not defined.

    Raises:
        ValueError: torchao is missing or refuses the weights; the device, the precision or the model does not allow
            these weights. One line.
    """
    if weights == "fp8":
        _check_fp8(model)
    _check_weights_there(model)
    shared: dict[int, object] = {id(parameter): parameter for parameter in model.parameters()}
    ranking = copy.deepcopy(model, shared)
    linears = _linears(ranking)
    _quantize(linears, weights)
    # torchao leaves float8 weights alone whose sizes are no multiples of 16
    done = [linear for linear in linears if type(linear.weight.data) is not torch.Tensor]
    if not done:
        raise ValueError(
            f"--ranking-weights {weights} must have linear layers to work on, got none that fit in the decoder layers "
            f"of {type(model).__name__}. Leave it out."
        )
    logger.info(
        "search documents are scored by a copy with %s weights in %d of its %d linear layers, %.2f GB beside the model",
        *(weights, len(done), len(linears), sum(linear.weight.numel() for linear in done) / 1e9),
    )
    return ranking


def _linears(model: PreTrainedModel) -> list[nn.Linear]:
    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    return [module for layer in layers for module in layer.modules() if isinstance(module, nn.Linear)]


def _check_fp8(model: PreTrainedModel) -> None:
    if model.dtype != torch.bfloat16:
        raise ValueError(
            f"--ranking-weights fp8 must go with --dtype bfloat16, got {model.dtype}. Set it, or use int8."
        )
    for device in {parameter.device for parameter in model.parameters()}:
        name, capability = "the CPU", (0, 0)
        if device.type == "cuda":
            name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
        if capability < FP8_CAPABILITY:
            raise ValueError(
                f"--ranking-weights fp8 must have a GPU of compute capability {FP8_CAPABILITY[0]}.{FP8_CAPABILITY[1]} "
                f"or more (Ada, Hopper, Blackwell), got {name}. Use int8, or leave it out."
            )


def _check_weights_there(model: PreTrainedModel) -> None:
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError(
            "--ranking-weights must have all weights on devices, got some that are offloaded. Give the model more "
            "GPUs, or leave it out."
        )


def _quantize(linears: Sequence[nn.Linear], weights: RankingWeights) -> None:
    """Exchange the weights of linear layers; their old ones are not touched."""
    try:
        from torchao.quantization import quantize_

        config = _torchao_config(weights)
        for linear in linears:
            quantize_(linear, config)
    except ImportError as error:
        raise ValueError(
            f"--ranking-weights {weights} must have the package torchao, got: {' '.join(str(error).split())}. Install "
            "ropewalk[quantized], or leave it out."
        ) from error
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"--ranking-weights {weights} must be possible with this torchao, got: {reason}. Leave it out."
        ) from error


def _torchao_config(weights: RankingWeights) -> "AOBaseConfig":
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, Int8WeightOnlyConfig, PerRow

    # The settings of torch.compile are left alone: nothing is compiled here
    if weights == "int8":
        return Int8WeightOnlyConfig(set_inductor_config=False)
    return Float8DynamicActivationFloat8WeightConfig(granularity=PerRow(), set_inductor_config=False)
