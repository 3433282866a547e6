"""NeedleScoring: a loaded model and its documents; factors in, one measurement per document out.

Shapes: B documents, T tokens, A tokens from the first answer on, V vocabulary.
"""

import gc
import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from time import perf_counter
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from needles.document import NeedleDocument
from results.measurement import Measurement, candidate_key
from rope.factors import RescaleFactors
from workers.attention import PREFIX
from workers.batching import ENOUGH_SECONDS, MOST_DOCUMENTS, fastest_batch_size
from workers.flops import document_flops
from workers.gradient import RotationChange, checkpointed_layers, differentiable_rotation
from workers.memory import check_memory, piece_length
from workers.model import LoadedModel
from workers.scorer import Task, failed_measurements, failure_reason, is_out_of_memory
from workers.speed import matmul_ceiling, peak_bytes, worker_speed
from workers.trimmed import NotTrimmableError, Trim, trimmed_forward

IGNORED = -100
"""Target of a position that is no answer; torch's own sign for it."""
NUM_PROBE_TOKENS = 64
"""Tokens of the first document on which it is proved that factors take effect."""

ModelLoader: TypeAlias = Callable[[], LoadedModel]
"""Loads the model where it is called: `functools.partial(load_model, path, ...)`."""

logger = logging.getLogger(__name__)


def load_scoring(documents: Sequence[NeedleDocument], *, load: ModelLoader) -> "NeedleScoring":
    """Return a scoring of these documents by the model; `partial(load_scoring, load=...)` is a `ScoringFactory`.

    Args:
        documents: As `NeedleScoring`.
        load: Loads the model.

    Returns:
        The scoring.

    Raises:
        ValueError: As `load` and `NeedleScoring` do.
    """
    return NeedleScoring(load(), documents)


class NeedleScoring:
    """Measures the loss of the needles' answers, at the end of each document, under any factors."""

    def __init__(self, loaded: LoadedModel, documents: Sequence[NeedleDocument]) -> None:
        """Turn the documents into tensors and prove that factors change the model's logits.

        Args:
            loaded: The model.
            documents: What it may be asked to read; ids distinct.

        Raises:
            ValueError: There is no document, two have the same id, one holds a token that the model does not know, the
                longest does not fit the memory, or factors do not change the logits.
        """
        _check_documents(documents, loaded.model.config.get_text_config().vocab_size)
        self._loaded = loaded
        self._model = loaded.model
        self._patch = loaded.patch
        self._documents = {document.id: document for document in documents}
        self._token_ids = {document.id: _token_ids(document, loaded.device) for document in documents}
        check_memory(loaded, longest=max(documents, key=lambda document: document.length))
        self._patch.check_effect(self._token_ids[documents[0].id][None, :NUM_PROBE_TOKENS])
        self._flops = cache(self._document_flops)
        # By length of document, tokens; a length that is not here has always fitted
        self._batch_sizes: dict[int, int] = {}
        self.speed = worker_speed(loaded.device, loaded.dtype, self._fastest_batch_sizes())
        """What the device can do."""

    def score(self, candidate: RescaleFactors, document_ids: Sequence[str]) -> list[Measurement]:
        """Measure factors on documents of equal length, in as few forwards as fit. The model is left as it was loaded.

        Memory that is too small for one document, factors for another model and a loss that is not finite are failed
        measurements with their reason; a batch that does not fit is split. Anything else is raised: the process may
        be broken, as after an error on the device.

        Args:
            candidate: Factors to install.
            document_ids: Ids of documents given at construction.

        Returns:
            One measurement per document, in the order of the ids.
        """
        with self._patch:
            return self._refused(candidate, document_ids) or self._score_installed(candidate, tuple(document_ids))

    def score_with_gradient(self, candidate: RescaleFactors, document_ids: Sequence[str]) -> list[Measurement]:
        """Measure factors and the gradient of each document's loss; one document after the other.

        Failures are those of `score`, and a gradient that is not finite. The weights are not differentiated.

        Args:
            candidate: Factors to install.
            document_ids: Ids of documents given at construction; their lengths may differ.

        Returns:
            One measurement per document, in the order of the ids, each that did not fail with its gradient.

        Raises:
            ValueError: The layout of the model's rotary modules is not known, see `differentiable_rotation`.
        """
        # From the installation on: autograd refuses frequencies that were made in inference mode
        with torch.inference_mode(False), torch.enable_grad(), self._patch:
            if refused := self._refused(candidate, document_ids):
                return refused
            rotation = differentiable_rotation(self._patch, num_start_tokens=candidate.num_start_tokens)
            with rotation as change:
                return [self._differentiated(candidate, document_id, change) for document_id in document_ids]

    def _refused(self, candidate: RescaleFactors, document_ids: Sequence[str]) -> list[Measurement]:
        """Install factors; return nothing, or the failures of a model that does not take them."""
        try:
            self._patch.install(candidate)
        except ValueError as error:
            task = Task(candidate, tuple(document_ids))
            return failed_measurements(task, self._documents, failure_reason(error))
        return []

    def _score_installed(self, candidate: RescaleFactors, rest: tuple[str, ...]) -> list[Measurement]:
        measured: list[Measurement] = []
        while rest:
            length = self._documents[rest[0]].length
            batch = rest[: self._batch_sizes.get(length)]
            start = perf_counter()
            sums, shortage = _or_shortage(partial(self._sums_of_nll, [self._documents[name] for name in batch]))
            seconds = (perf_counter() - start) / len(batch)
            if shortage and len(batch) > 1:
                self._batch_sizes[length] = len(batch) // 2
                logger.warning(
                    "%d documents of %d tokens do not fit at once, from now on %d do: %s",
                    *(len(batch), length, self._batch_sizes[length], shortage),
                )
                continue
            if shortage:
                measured += failed_measurements(Task(candidate, batch), self._documents, shortage, seconds=seconds)
            for document, sum_nll in zip(batch, sums, strict=False):
                measured.append(self._measurement(candidate, document, sum_nll, seconds))
            rest = rest[len(batch) :]
        return measured

    def _differentiated(self, candidate: RescaleFactors, document_id: str, change: RotationChange) -> Measurement:
        start = perf_counter()
        numbers, shortage = _or_shortage(partial(self._sum_and_gradient, self._documents[document_id], change))
        seconds = perf_counter() - start
        if shortage:
            return failed_measurements(Task(candidate, (document_id,)), self._documents, shortage, seconds=seconds)[0]
        return self._measurement(candidate, document_id, numbers[0], seconds, gradient=tuple(numbers[1:]))

    def _sum_and_gradient(self, document: NeedleDocument, change: RotationChange) -> list[float]:
        with self._trimmed([document]), checkpointed_layers(self._model, document.length):
            sum_nll = self._nll([document])[0]
            return [sum_nll.item(), *change.gradient(sum_nll / document.num_answer_tokens)]

    @torch.inference_mode()
    def _sums_of_nll(self, documents: Sequence[NeedleDocument]) -> list[float]:
        with self._trimmed(documents):
            sums: list[float] = self._nll(documents).tolist()
        return sums

    def _trimmed(self, documents: Sequence[NeedleDocument]) -> AbstractContextManager[None]:
        """Compute only what the answers need, where the model allows it."""
        if not self._loaded.is_trimmed:
            return nullcontext()
        trim = Trim(num_kept=_num_kept(documents), piece_length=piece_length(self._model, len(documents)))
        return trimmed_forward(self._model, trim, attention=PREFIX + self._loaded.attention)

    def _nll(self, documents: Sequence[NeedleDocument]) -> Tensor:
        """Return the negative log-likelihood of each document's answers, shape (B,), float64, nats."""
        input_ids_BT = torch.stack([self._token_ids[document.id] for document in documents])
        targets_BA = _answer_targets(input_ids_BT, documents)
        # Of a trimmed forward these are all there are
        output = self._model(input_ids=input_ids_BT, use_cache=False, logits_to_keep=_num_kept(documents))
        logits_BAV = output.logits[:, :-1].to(targets_BA.device, torch.float32)
        nll_BA = functional.cross_entropy(
            logits_BAV.transpose(1, 2), targets_BA, reduction="none", ignore_index=IGNORED
        )
        assert (targets_BA != IGNORED).sum(dim=1).tolist() == [document.num_answer_tokens for document in documents]
        return nll_BA.double().sum(dim=1)

    def _document_flops(self, *, num_tokens: int, num_kept: int, with_gradient: bool) -> float | None:
        try:
            return document_flops(self._model, num_tokens=num_tokens, num_kept=num_kept, with_gradient=with_gradient)
        except NotTrimmableError:  # layers that nobody can tell
            return None

    def _fastest_batch_sizes(self) -> dict[int, int]:
        """Measure how many documents of each length go through a GPU fastest, where one does not fill it by itself.

        On a CPU one document keeps all cores busy, and measurements there would make runs differ that need not.
        """
        if self._loaded.device.type != "cuda":
            return {}
        ceiling = matmul_ceiling(self._loaded.device, self._loaded.dtype)
        by_length: dict[int, list[NeedleDocument]] = {}
        for document in self._documents.values():
            by_length.setdefault(document.length, []).append(document)
        sizes = {}
        for length, documents in by_length.items():
            flops = self._flops(num_tokens=length, num_kept=_num_kept(documents), with_gradient=False) or 0.0
            if len(documents) > 1 and flops / ceiling < ENOUGH_SECONDS:
                most = min(len(documents), MOST_DOCUMENTS)
                sizes[length] = fastest_batch_size(partial(self._seconds_of, documents), most=most)
                logger.info("%d documents of %d tokens at once are fastest", sizes[length], length)
        return sizes

    def _seconds_of(self, documents: Sequence[NeedleDocument], num_documents: int) -> float:
        """Return the time of one forward over the first of these documents."""
        seconds = 0.0
        for _ in range(2):  # the first one loads kernels and makes room
            start = perf_counter()
            _, shortage = _or_shortage(partial(self._sums_of_nll, documents[:num_documents]))
            seconds = perf_counter() - start
            if shortage:
                raise MemoryError(shortage)
            if seconds >= ENOUGH_SECONDS:
                break
        return seconds

    def _measurement(
        self,
        candidate: RescaleFactors,
        document_id: str,
        sum_nll: float,
        seconds: float,
        gradient: tuple[float, ...] | None = None,
    ) -> Measurement:
        document = self._documents[document_id]
        flops = self._flops(
            num_tokens=document.length, num_kept=_num_kept([document]), with_gradient=gradient is not None
        )
        reason = ""
        if not math.isfinite(sum_nll):
            reason = f"loss is not finite: {sum_nll} over the answer of {document.num_answer_tokens} tokens"
        elif gradient and not all(map(math.isfinite, gradient)):
            reason = f"gradient is not finite: {sum(not math.isfinite(number) for number in gradient)} of its numbers"
        if reason:
            task = Task(candidate, (document_id,))
            return failed_measurements(task, self._documents, reason, seconds=seconds)[0]
        return Measurement(
            candidate=candidate_key(candidate),
            document=document_id,
            split=document.split,
            depth=document.depth,
            sum_nll=sum_nll,
            num_tokens=document.num_answer_tokens,
            seconds=seconds,
            gradient=gradient,
            flops=flops,
            peak_bytes=peak_bytes(self._loaded.device),
        )


def _or_shortage(compute: Callable[[], list[float]]) -> tuple[list[float], str]:
    """Return what is computed, or why memory was too short for it; what the error held is free by then."""
    try:
        return compute(), ""
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        shortage = failure_reason(error)
    _free_memory()
    return [], shortage


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _token_ids(document: NeedleDocument, device: torch.device) -> Tensor:
    return torch.from_numpy(np.asarray(document.token_ids, dtype=np.int64)).to(device)


def _num_kept(documents: Sequence[NeedleDocument]) -> int:
    """Return how many positions at the end a batch needs: from the one before its first answer on."""
    return max(document.length - document.answer_start for document in documents) + 1


def _answer_targets(input_ids_BT: Tensor, documents: Sequence[NeedleDocument]) -> Tensor:
    """Return the tokens from the batch's first answer on, `IGNORED` where they are no answer; shape (B, A)."""
    first = min(document.answer_start for document in documents)
    targets_BA = torch.full_like(input_ids_BT[:, first:], IGNORED)
    for targets_A, input_ids_T, document in zip(targets_BA, input_ids_BT, documents, strict=True):
        for start, end in document.answer_spans:
            targets_A[start - first : end - first] = input_ids_T[start:end]
    return targets_BA


def _check_documents(documents: Sequence[NeedleDocument], vocabulary_size: int) -> None:
    if not documents:
        raise ValueError("scoring must have at least one document, got none. Build documents first.")
    document_id, num_documents = Counter(document.id for document in documents).most_common(1)[0]
    if num_documents > 1:
        raise ValueError(f"documents must have distinct ids, got {document_id} {num_documents} times. Rename them.")
    for document in documents:
        largest = int(np.max(document.token_ids))
        if largest >= vocabulary_size:
            raise ValueError(
                f"documents must hold token ids below {vocabulary_size}, the model's vocabulary, got {largest} in "
                f"{document.id}. Was it built with another model's tokenizer?"
            )
