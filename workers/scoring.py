"""NeedleScoring: a loaded model and its documents; factors in, one measurement per document out.

Shapes: B documents, T tokens, A answer tokens, V vocabulary.
"""

import math
from collections import Counter
from collections.abc import Sequence
from time import perf_counter

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from needles.document import NeedleDocument
from results.measurement import Measurement, candidate_key
from rope.factors import RescaleFactors
from workers.model import LoadedModel
from workers.scorer import Task, failed_measurements, failure_reason

IGNORED = -100
"""Target of a position that is no answer; torch's own sign for it."""
NUM_PROBE_TOKENS = 64
"""Tokens of the first document on which it is proved that factors take effect."""


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
        self._patch.check_effect(self._token_ids[documents[0].id][None, :NUM_PROBE_TOKENS])

    def score(self, candidate: RescaleFactors, document_ids: Sequence[str]) -> list[Measurement]:
        """Measure factors on documents of equal length, in one forward. The model is left as it was loaded.

        Whatever goes wrong is a failed measurement with its reason: too little memory, factors for another model, a
        loss that is not finite.

        Args:
            candidate: Factors to install.
            document_ids: Ids of documents given at construction.

        Returns:
            One measurement per document, in the order of the ids.
        """
        task = Task(candidate, tuple(document_ids))
        start = perf_counter()
        try:
            with self._patch:
                self._patch.install(candidate)
                sums = self._sums_of_nll([self._documents[document] for document in task.documents])
        except Exception as error:  # noqa: BLE001 - the one place that catches all, to turn it into values
            seconds = (perf_counter() - start) / len(task.documents)
            return failed_measurements(task, self._documents, failure_reason(error), seconds=seconds)
        seconds = (perf_counter() - start) / len(task.documents)
        return [
            self._measurement(candidate, document, sum_nll, seconds)
            for document, sum_nll in zip(task.documents, sums, strict=True)
        ]

    @torch.inference_mode()
    def _sums_of_nll(self, documents: Sequence[NeedleDocument]) -> list[float]:
        input_ids_BT = torch.stack([self._token_ids[document.id] for document in documents])
        answer_lengths = [document.num_answer_tokens for document in documents]
        targets_BA = _answer_targets(input_ids_BT, answer_lengths)
        output = self._model(input_ids=input_ids_BT, use_cache=False, logits_to_keep=max(answer_lengths) + 1)
        logits_BAV = output.logits[:, :-1].float()
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
