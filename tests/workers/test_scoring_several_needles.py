"""Documents of several needles are scored on the tokens of their answers and on no others."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from needles.document import Answer, NeedleDocument
from needles.needle import Needle
from results.measurement import candidate_key
from rope.factors import RescaleFactors
from workers.model import LoadedModel
from workers.scoring import NeedleScoring

# float32 sums in another order: 2^-24 over some hundred terms of losses of about 10
TOLERANCE = 1e-5

Load = Callable[[str], LoadedModel]
MakeFactors = Callable[..., RescaleFactors]


@pytest.fixture
def mixed(documents: list[NeedleDocument]) -> list[NeedleDocument]:
    """Documents of 128 tokens: of one needle, of two with a stretch between, of three, two of them side by side."""
    spans = {1: ((90, 97), (121, 128)), 2: ((60, 62), (62, 69), (125, 128))}
    return [with_answers(document, spans.get(number, ())) for number, document in enumerate(documents[:3])]


def with_answers(document: NeedleDocument, spans: tuple[tuple[int, int], ...]) -> NeedleDocument:
    if not spans:
        return document
    answers = tuple(Answer(Needle("numerous-kite", "6716097"), 0.25 * place, *span) for place, span in enumerate(spans))
    return replace(document, answers=answers, answer_start=spans[0][0])


def plain_nll(loaded: LoadedModel, document: NeedleDocument) -> float:
    """Return what torch's cross entropy over the full logits gives for each token of an answer, added up."""
    input_ids = torch.from_numpy(document.token_ids.astype(np.int64))
    with torch.inference_mode():
        logits = loaded.model(input_ids=input_ids[None]).logits[0].float()
    scored = [index for start, end in document.answer_spans for index in range(start, end)]
    before = [index - 1 for index in scored]
    return functional.cross_entropy(logits[before], input_ids[scored], reduction="sum").item()


def test_the_loss_is_that_of_the_answers_tokens_in_a_plain_forward(
    architecture: str, load: Load, make_factors: MakeFactors, mixed: list[NeedleDocument]
) -> None:
    loaded = load(architecture)
    factors = make_factors(loaded, "yarn", 1.1)
    scoring = NeedleScoring(loaded, mixed)
    together = scoring.score(factors, [document.id for document in mixed])
    alone = [scoring.score(factors, [document.id])[0] for document in mixed]
    loaded.patch.install(factors)
    expected = [plain_nll(loaded, document) for document in mixed]
    assert [measurement.sum_nll for measurement in together] == pytest.approx(expected, rel=TOLERANCE)
    assert [measurement.sum_nll for measurement in alone] == pytest.approx(expected, rel=TOLERANCE)
    assert [measurement.num_tokens for measurement in together] == [3, 14, 12]


def test_one_measurement_covers_all_needles_of_a_document(
    load: Load, make_factors: MakeFactors, mixed: list[NeedleDocument]
) -> None:
    loaded = load("llama")
    factors = make_factors(loaded, "linear")
    (measurement,) = NeedleScoring(loaded, mixed).score(factors, [mixed[2].id])
    assert (measurement.candidate, measurement.document) == (candidate_key(factors), mixed[2].id)
    assert measurement.failure is None


def test_logits_are_computed_from_the_first_answer_on(
    load: Load, make_factors: MakeFactors, mixed: list[NeedleDocument]
) -> None:
    loaded = load("llama")
    scoring = NeedleScoring(loaded, mixed)
    shapes: list[tuple[int, ...]] = []
    head = loaded.model.get_submodule("lm_head")
    head.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape)))
    factors = make_factors(loaded, "linear")
    scoring.score(factors, [mixed[1].id])
    scoring.score(factors, [document.id for document in mixed])
    # from the token before the first answer, at 90 and at 60, to the end at 128
    assert shapes == [(1, 39, 260), (3, 69, 260)]


def test_tokens_between_the_answers_change_no_count_and_no_target(
    load: Load, make_factors: MakeFactors, mixed: list[NeedleDocument]
) -> None:
    loaded = load("llama")
    unscored = replace(mixed[1], id="unscored", answers=mixed[1].answers[:1])
    factors = make_factors(loaded, "linear")
    first, both = NeedleScoring(loaded, [unscored, mixed[1]]).score(factors, ["unscored", mixed[1].id])
    assert (first.num_tokens, both.num_tokens) == (7, 14)
    assert first.sum_nll < both.sum_nll
