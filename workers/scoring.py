"""NeedleScoring: a loaded model and its documents; factors in, one measurement per document out.

Shapes: B documents, T tokens, A answer tokens, V vocabulary.
"""

import gc
import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from needles.document import NeedleDocument
from results.measurement import Measurement, candidate_key
from rope.factors import RescaleFactors
from workers.model import LoadedModel
from workers.scorer import Task, failed_measurements, failure_reason, is_out_of_memory

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
    """Measures the loss of the needle's answer, the last tokens of each document, under any factors."""

    def __init__(self, loaded: LoadedModel, documents: Sequence[NeedleDocument]) -> None:
        """Turn the documents into tensors and prove that factors change the model's logits.

        Args:
            loaded: The model.
            documents: What it may be asked to read; ids distinct.

        Raises:
            ValueError: There is no document, two have the same id, one holds a token that the model does not know, or
                factors do not change the logits.
        """
        _check_documents(documents, loaded.model.config.get_text_config().vocab_size)
        self._model = loaded.model
        self._patch = loaded.patch
        self._documents = {document.id: document for document in documents}
        self._token_ids = {document.id: _token_ids(document, loaded.device) for document in documents}
        # By length of document, tokens; a length that is not here has always fitted
        self._batch_sizes: dict[int, int] = {}
        self._patch.check_effect(self._token_ids[documents[0].id][None, :NUM_PROBE_TOKENS])

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
            try:
                self._patch.install(candidate)
            except ValueError as error:
                task = Task(candidate, tuple(document_ids))
                return failed_measurements(task, self._documents, failure_reason(error))
            return self._score_installed(candidate, tuple(document_ids))

    def _score_installed(self, candidate: RescaleFactors, rest: tuple[str, ...]) -> list[Measurement]:
        measured: list[Measurement] = []
        while rest:
            length = self._documents[rest[0]].length
            batch = rest[: self._batch_sizes.get(length)]
            start = perf_counter()
            sums, shortage = self._sums_or_shortage(batch)
            seconds = (perf_counter() - start) / len(batch)
            if shortage:
                _free_memory()
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

    def _sums_or_shortage(self, batch: Sequence[str]) -> tuple[list[float], str]:
        """Return the batch's losses, or why memory was too short for them; what the error held is free by then."""
        try:
            return self._sums_of_nll([self._documents[document] for document in batch]), ""
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return [], failure_reason(error)

    @torch.inference_mode()
    def _sums_of_nll(self, documents: Sequence[NeedleDocument]) -> list[float]:
        input_ids_BT = torch.stack([self._token_ids[document.id] for document in documents])
        answer_lengths = [document.num_answer_tokens for document in documents]
        targets_BA = _answer_targets(input_ids_BT, answer_lengths)
        output = self._model(input_ids=input_ids_BT, use_cache=False, logits_to_keep=max(answer_lengths) + 1)
        logits_BAV = output.logits[:, :-1].to(targets_BA.device, torch.float32)
        nll_BA = functional.cross_entropy(
            logits_BAV.transpose(1, 2), targets_BA, reduction="none", ignore_index=IGNORED
        )
        assert (targets_BA != IGNORED).sum(dim=1).tolist() == answer_lengths
        sums: list[float] = nll_BA.double().sum(dim=1).tolist()
        return sums

    def _measurement(self, candidate: RescaleFactors, document_id: str, sum_nll: float, seconds: float) -> Measurement:
        document = self._documents[document_id]
        if not math.isfinite(sum_nll):
            reason = f"loss is not finite: {sum_nll} over the answer of {document.num_answer_tokens} tokens"
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
        )


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _token_ids(document: NeedleDocument, device: torch.device) -> Tensor:
    return torch.from_numpy(np.asarray(document.token_ids, dtype=np.int64)).to(device)


def _answer_targets(input_ids_BT: Tensor, answer_lengths: Sequence[int]) -> Tensor:
    targets_BA = input_ids_BT[:, -max(answer_lengths) :].clone()
    for row_A, length in zip(targets_BA, answer_lengths, strict=True):
        row_A[: row_A.numel() - length] = IGNORED
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
