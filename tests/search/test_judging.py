"""Judging: validation documents choose among the finalists, held-out ones say whether the choice beats the formulas."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

import pytest

from results.summary import MethodResult, best_result
from rope.factors import RescaleFactors
from rope.methods import METHODS
from search.evolution import measure_formulas
from search.judging import Judged, Splits, judge, measure_picks
from search.ledger import Ledger, Scored
from search.objectives import Objectives
from search.panels import Panels
from search.racing import Racing
from search.study import CANDIDATE, NAME
from workers.scorer import Scorer

MakeScorer = Callable[..., Scorer]
MakeLedger = Callable[..., Ledger]

SEARCH = ("s0", "s1")
SPLITS = Splits(search=SEARCH, validation=("v0", "v1"), heldout=("h0", "h1"), original=("o0", "o1"))


class Losses(NamedTuple):
    """What a candidate loses, nats per token, on the documents of each split."""

    search: float
    validation: float = 1.0
    heldout: float = 1.0
    original: float = 1.0


def formula(name: str, temperature: float = 1.0) -> RescaleFactors:
    return METHODS[name](32, 500.0, original_length=256, target_length=1024).with_temperature(temperature)


def searched(number: int) -> RescaleFactors:
    """Return one of several candidates that a search could have made."""
    values = [1.0 + 0.01 * (number + 1) * pair for pair in range(16)]
    return formula("linear").with_values(values, method="cmaes-search").with_temperature(1.2)


A, B, C, D = map(searched, range(4))
LINEAR, WARM, HOT, YARN = formula("linear"), formula("linear", 1.1), formula("linear", 1.3), formula("yarn", 1.1)
FORMULAS = {
    LINEAR: Losses(3.0, 3.0, 3.0, 1.0),
    WARM: Losses(2.0, 2.0, 2.0, 1.0),
    HOT: Losses(4.0, 4.0, 4.0, 1.0),
    YARN: Losses(2.5, 2.5, 2.5, 1.0),
}
Table = Mapping[RescaleFactors, Losses]


class Court:
    """A search that ended: formulas and candidates with the losses of a table."""

    def __init__(
        self,
        table: Table,
        make_scorer: MakeScorer,
        make_ledger: MakeLedger,
        *,
        racing: Racing | None = None,
        objectives: Objectives | None = None,
        always: tuple[str, ...] = (),
        loss: Callable[[RescaleFactors, str], float] | None = None,
    ) -> None:
        self.calls: Counter[str] = Counter()

        def lookup(factors: RescaleFactors, document: str) -> float:
            self.calls[document] += 1
            place = {"s": 0, "v": 1, "h": 2, "o": 3}[document[0]]
            return table[factors][place] if loss is None else loss(factors, document)

        panels = Panels(documents=SEARCH, size=2, always=always)
        self.documents = SEARCH + always
        self.table = table
        self.ledger = make_ledger(make_scorer(lookup), panels=panels, racing=racing, objectives=objectives)

    def judge(
        self, finalists: list[RescaleFactors], *, num_finalists: int = 2, tried: bool = False, splits: Splits = SPLITS
    ) -> Judged:
        """Measure the table's formulas and the finalists, and judge them; `tried` are all searched of the table."""
        formulas = measure_formulas(
            self.ledger, [factors for factors in self.table if factors.method != "cmaes-search"], self.documents
        )
        others = [factors for factors in self.table if factors.method == "cmaes-search" and factors not in finalists]
        return judge(
            self.ledger,
            formulas=formulas,
            searched=measure_picks(self.ledger, finalists, self.documents),
            tried=measure_picks(self.ledger, others, self.documents) if tried else [],
            num_finalists=num_finalists,
            splits=splits,
        )


def result_of(judged: Judged, factors: RescaleFactors) -> MethodResult:
    """Return the result of factors; there must be one alone."""
    (result,) = (result for found, result in judged.results if found == factors)
    return result


def picked(judged: Judged) -> list[RescaleFactors]:
    return [factors for factors, result in judged.results if result.is_picked]


def test_validation_picks_among_the_finalists_and_held_out_documents_never_do(
    make_scorer: MakeScorer, make_ledger: MakeLedger
) -> None:
    table = {**FORMULAS, A: Losses(1.0, 1.5, 1.5), B: Losses(1.1, 1.2, 1.9), C: Losses(1.2, 1.6, 0.5)}
    judged = Court(table, make_scorer, make_ledger).judge([A, B, C])
    assert picked(judged) == [B]
    assert judged.winner == B  # A and C are better on held-out documents, and no one may look
    assert judged.front == ()


def test_a_pick_that_is_worse_than_the_best_formula_on_held_out_documents_loses_to_it(
    make_scorer: MakeScorer, make_ledger: MakeLedger
) -> None:
    table = {**FORMULAS, A: Losses(1.0, 1.0, 2.1), B: Losses(1.1, 1.1, 0.5)}
    judged = Court(table, make_scorer, make_ledger).judge([A, B])
    assert picked(judged) == [A]
    assert judged.winner == WARM


def test_a_draw_with_a_formula_goes_to_the_formula(make_scorer: MakeScorer, make_ledger: MakeLedger) -> None:
    table = {**FORMULAS, A: Losses(1.0, 1.0, 2.0)}
    assert Court(table, make_scorer, make_ledger).judge([A]).winner == WARM


def test_all_perplexities_are_those_of_their_documents(make_scorer: MakeScorer, make_ledger: MakeLedger) -> None:
    table = {**FORMULAS, A: Losses(0.1, 0.2, 0.3, 0.4)}
    result = result_of(Court(table, make_scorer, make_ledger).judge([A]), A)
    assert (result.name, result.kind, result.attention_temperature) == ("cmaes-search", "searched", 1.2)
    found = [result.search_perplexity, result.validation_perplexity]
    found += [result.heldout_perplexity, result.original_perplexity]
    assert found == pytest.approx([math.exp(loss) for loss in (0.1, 0.2, 0.3, 0.4)])
    assert result.gap == pytest.approx(0.2)


def test_the_gap_compares_like_with_like_where_the_search_capped_what_a_lost_needle_counts(
    make_scorer: MakeScorer, make_ledger: MakeLedger
) -> None:
    table = {**FORMULAS, A: Losses(4.0, 1.0, 4.5)}
    judged = Court(table, make_scorer, make_ledger, objectives=Objectives(aggregate="capped")).judge([A])
    assert result_of(judged, A).gap == pytest.approx(0.5)


def test_every_formula_appears_at_its_best_temperature_on_search_documents(
    make_scorer: MakeScorer, make_ledger: MakeLedger
) -> None:
    table = {**FORMULAS, HOT: Losses(2.9, 0.1, 0.1), A: Losses(1.0)}
    judged = Court(table, make_scorer, make_ledger).judge([A], num_finalists=1)
    assert [factors for factors, _ in judged.results] == [WARM, YARN, A]
    assert {result.kind for factors, result in judged.results if factors != A} == {"formula"}
    # only the best formula meets the finalists on the validation documents
    assert result_of(judged, WARM).validation_perplexity == pytest.approx(math.exp(2.0))
    assert math.isnan(result_of(judged, YARN).validation_perplexity)
    assert result_of(judged, YARN).heldout_perplexity == pytest.approx(math.exp(2.5))


def test_as_many_formulas_as_finalists_meet_them_whatever_their_temperature(
    make_scorer: MakeScorer, make_ledger: MakeLedger
) -> None:
    table = {**FORMULAS, A: Losses(1.0)}
    judged = Court(table, make_scorer, make_ledger).judge([A], num_finalists=3)
    raced = [factors for factors, result in judged.results if not math.isnan(result.validation_perplexity)]
    assert set(raced) == {WARM, YARN, LINEAR, A}
    assert picked(judged) == [A]


def test_a_formula_that_could_not_be_measured_at_its_paper_s_temperature_appears_at_another(
    make_scorer: MakeScorer, make_ledger: MakeLedger
) -> None:
    table = {**FORMULAS, WARM: Losses(math.nan), A: Losses(1.0)}
    judged = Court(table, make_scorer, make_ledger).judge([A], num_finalists=1)
    assert [factors for factors, _ in judged.results] == [LINEAR, YARN, A]


def test_nobody_is_measured_twice_and_none_on_documents_of_others(
    make_scorer: MakeScorer, make_ledger: MakeLedger
) -> None:
    court = Court({**FORMULAS, A: Losses(1.0), B: Losses(1.1)}, make_scorer, make_ledger)
    court.judge([A, B], num_finalists=2)
    # six on search documents, two formulas and two finalists on validation's; linear and YaRN are shown
    assert court.calls == {"s0": 6, "s1": 6, "v0": 4, "v1": 4, "h0": 4, "h1": 4, "o0": 4, "o1": 4}
    trials = court.ledger.trials.study.trials
    assert [trial.user_attrs[NAME] for trial in trials[4:]] == ["finalist 1", "finalist 2"]
    assert len({trial.user_attrs[CANDIDATE] for trial in trials}) == len(trials) == 6


def test_finalists_come_back_by_their_loss_and_failures_do_not(
    make_scorer: MakeScorer, make_ledger: MakeLedger
) -> None:
    court = Court({A: Losses(1.3), B: Losses(math.nan), C: Losses(1.1)}, make_scorer, make_ledger)
    found = measure_picks(court.ledger, [A, B, C], SEARCH)
    assert [entry.factors for entry in found] == [C, A]
    assert [entry.loss for entry in found] == pytest.approx([1.1, 1.3])
    assert measure_picks(court.ledger, [], SEARCH) == []


def test_without_finalists_the_best_formula_on_held_out_documents_wins(
    make_scorer: MakeScorer, make_ledger: MakeLedger
) -> None:
    table = {**FORMULAS, YARN: Losses(2.5, 2.5, 1.5)}
    judged = Court(table, make_scorer, make_ledger).judge([])
    assert picked(judged) == []
    assert judged.winner == YARN


def test_a_finalist_that_fails_on_validation_documents_is_not_picked(
    make_scorer: MakeScorer, make_ledger: MakeLedger
) -> None:
    table = {**FORMULAS, A: Losses(1.0, math.nan, 0.1), B: Losses(1.1, 1.9, 1.9)}
    judged = Court(table, make_scorer, make_ledger).judge([A, B])
    assert judged.winner == B
    assert math.isnan(result_of(judged, A).validation_perplexity)


def test_a_pick_that_fails_on_held_out_documents_loses(make_scorer: MakeScorer, make_ledger: MakeLedger) -> None:
    table = {**FORMULAS, A: Losses(1.0, 1.0, math.nan), B: Losses(1.1, 1.1, 0.1)}
    judged = Court(table, make_scorer, make_ledger).judge([A, B])
    assert picked(judged) == [A]
    assert judged.winner == WARM


def test_equals_are_picked_in_the_order_of_the_search(make_scorer: MakeScorer, make_ledger: MakeLedger) -> None:
    table = {**FORMULAS, D: Losses(1.0), C: Losses(1.1), B: Losses(1.2), A: Losses(1.3)}
    assert picked(Court(table, make_scorer, make_ledger).judge([A, B, C, D])) == [D]


VALIDATION = tuple(f"v{number}" for number in range(12))
LONG = Splits(search=SEARCH, validation=VALIDATION, heldout=SPLITS.heldout, original=SPLITS.original)


def test_a_finalist_that_lost_the_race_has_no_validation_figure_and_is_not_picked(
    make_scorer: MakeScorer, make_ledger: MakeLedger
) -> None:
    table = {**FORMULAS, A: Losses(1.0), B: Losses(1.1)}

    def loss(factors: RescaleFactors, document: str) -> float:
        # those that come later are harder, so that B's mean over four is the lowest
        return table[factors].search + (document[0] == "v" and int(document[1:]) >= 4) * 5.0

    court = Court(table, make_scorer, make_ledger, racing=Racing(), loss=loss)
    judged = court.judge([A, B], splits=LONG)
    assert picked(judged) == [A]
    assert math.isnan(result_of(judged, B).validation_perplexity)
    assert not math.isnan(result_of(judged, B).heldout_perplexity)
    # after four documents B and both formulas are out
    assert (court.calls["v3"], court.calls["v4"], court.calls["v11"]) == (4, 1, 1)


def test_where_formulas_are_better_and_drop_all_finalists_one_is_picked_still(
    make_scorer: MakeScorer, make_ledger: MakeLedger
) -> None:
    table = {**FORMULAS, A: Losses(5.0, 6.0, 1.9), B: Losses(5.1, 5.9, 1.0)}
    judged = Court(table, make_scorer, make_ledger, racing=Racing()).judge([A, B], splits=LONG)
    assert picked(judged) == [B]
    assert math.isnan(result_of(judged, B).validation_perplexity)


BOTH = Objectives(names=("long", "short"), original=frozenset({"o0", "o1"}), unscaled=0.0)


def two_objectives(table: Table, make_scorer: MakeScorer, make_ledger: MakeLedger) -> Court:
    return Court(table, make_scorer, make_ledger, objectives=BOTH, always=("o0", "o1"))


def test_with_two_objectives_the_knee_of_the_front_is_picked(make_scorer: MakeScorer, make_ledger: MakeLedger) -> None:
    # C is the bend of the front A, C, YARN; A is better on validation documents
    table = {
        LINEAR: Losses(3.0, 3.0, 3.0, 1.0),
        YARN: Losses(2.0, 2.0, 2.0, 0.0),
        A: Losses(1.0, 1.0, 1.0, 1.0),
        B: Losses(1.3, 1.3, 1.3, 0.9),
        C: Losses(1.2, 1.2, 1.2, 0.2),
        D: Losses(1.5, 1.5, 1.5, 0.8),
    }
    judged = two_objectives(table, make_scorer, make_ledger).judge([A, B], tried=True)
    assert [point.name for point in judged.front] == ["cmaes-search", "cmaes-search", "yarn"]
    assert [point.long_perplexity for point in judged.front] == pytest.approx([math.exp(x) for x in (1.0, 1.2, 2.0)])
    assert [point.short_ratio for point in judged.front] == pytest.approx([math.exp(x) for x in (1.0, 0.2, 0.0)])
    assert [point.is_knee for point in judged.front] == [False, True, False]
    assert picked(judged) == [C]
    assert judged.winner == C
    assert best_result([result for _, result in judged.results]).name == "cmaes-search"


def test_with_two_objectives_a_knee_that_loses_to_a_formula_at_both_lengths_together_does_not_win(
    make_scorer: MakeScorer, make_ledger: MakeLedger
) -> None:
    table = {
        LINEAR: Losses(3.0, 3.0, 3.0, 1.0),
        YARN: Losses(2.0, 2.0, 1.1, 0.0),
        A: Losses(1.0, 1.0, 0.1, 1.0),
        C: Losses(1.2, 1.2, 1.2, 0.2),
    }
    judged = two_objectives(table, make_scorer, make_ledger).judge([A, C])
    assert picked(judged) == [C]
    assert judged.winner == YARN


def test_with_two_objectives_and_a_formula_as_the_knee_held_out_documents_choose_no_searched_candidate(
    make_scorer: MakeScorer, make_ledger: MakeLedger
) -> None:
    table = {
        YARN: Losses(2.0, 2.0, 2.0, 0.0),
        WARM: Losses(1.2, 1.2, 1.2, 0.2),
        A: Losses(1.0, 1.0, 0.1, 1.0),
        B: Losses(1.1, 1.1, 0.1, 0.9),
    }
    judged = two_objectives(table, make_scorer, make_ledger).judge([A, B], num_finalists=1)
    assert picked(judged) == [WARM]
    assert judged.winner == WARM


def test_with_two_objectives_a_search_that_began_at_the_knee_does_not_claim_its_formula(
    make_scorer: MakeScorer, make_ledger: MakeLedger
) -> None:
    table = {LINEAR: Losses(1.2, original=0.2), YARN: Losses(2.0, original=0.0), A: Losses(1.0, original=1.0)}
    court = two_objectives(table, make_scorer, make_ledger)
    formulas = measure_formulas(court.ledger, [LINEAR, YARN], court.documents)
    searched = measure_picks(court.ledger, [A], court.documents)
    start = Scored(factors=LINEAR.with_values(LINEAR.values, method="nsga2-search"), losses=formulas[0].losses)
    judged = judge(court.ledger, formulas=formulas, searched=searched, tried=[start], num_finalists=2, splits=SPLITS)
    assert [(result.name, result.kind) for _, result in judged.results if result.is_picked] == [("linear", "formula")]


def test_with_two_objectives_a_formula_that_is_the_knee_is_shown_at_that_temperature(
    make_scorer: MakeScorer, make_ledger: MakeLedger
) -> None:
    # the sums of HOT and YARN are lower, and HOT is the same formula as the knee LINEAR
    table = {
        YARN: Losses(0.6, original=0.7),
        HOT: Losses(0.5, original=0.75),
        LINEAR: Losses(0.1, original=1.2),
        A: Losses(0.08, original=3.2),
    }
    judged = two_objectives(table, make_scorer, make_ledger).judge([A], num_finalists=1)
    assert [point.is_knee for point in judged.front] == [False, True, False, False]
    assert picked(judged) == [LINEAR]


def test_with_two_objectives_and_nobody_measured_there_is_no_front(
    make_scorer: MakeScorer, make_ledger: MakeLedger
) -> None:
    court = two_objectives({A: Losses(math.nan), **FORMULAS}, make_scorer, make_ledger)
    failed: list[Scored] = measure_picks(court.ledger, [A], court.documents)
    assert failed == []
