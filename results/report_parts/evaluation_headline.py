"""What an evaluation found, in a sentence or two and a table."""

import math
from collections.abc import Mapping, Sequence

from results.answer_tables import UNSCALED
from results.evaluation import BEYOND
from results.report_parts.evaluation_record import EvaluationRecord
from results.report_parts.evaluation_scores import Scores, percent_text, scores_of
from results.report_parts.markup import Cell, counted, element, grouped_table, perplexity_text, section
from results.text_loss_tables import perplexities

BOLD = "font-weight:700"


def evaluation_state_html(record: EvaluationRecord) -> str:
    """Return what a reader must know first: that the evaluation is not finished."""
    if record.is_finished:
        return ""
    state = "is being measured" if record.is_alive else "was stopped or killed"
    told = f"Unfinished: it {state}"
    told += "." if record.is_alive else "; the same command goes on with it."
    told += "" if record.is_alive else f" One that had no --run-dir needs --run-dir {record.path}."
    return element("p", told, classes="banner")


def evaluation_headline_html(record: EvaluationRecord) -> str:
    """Return who did best, and the scores of every task."""
    scores = scores_of(record)
    first, *others = findings_in_words(record)
    told = element("p", first, classes="gain") + (element("p", " ".join(others)) if others else "")
    return section("Result" if record.is_finished else "Result so far", told, _table(record, scores))


def findings_in_words(record: EvaluationRecord) -> list[str]:
    """Return who did best at the longest length, in a sentence or more: in the tasks, then in the perplexity of text.

    Args:
        record: The evaluation.
    """
    sentences = [*_best_answers(record, scores_of(record)), *_best_perplexity(record), *_kept(record)]
    return sentences or [f"{counted(len(record.contenders), 'contender')}; the measurements are below."]


def _best_answers(record: EvaluationRecord, scores: Scores) -> list[str]:
    if not scores.lengths:
        return []
    longest = scores.lengths[-1]
    means = {name: scores.overall(name, longest) for name in record.contenders}
    known = {name: value for name, value in means.items() if value is not None and not math.isnan(value)}
    if not known:
        return []
    where, over = f"At {longest:,} tokens", f"in the mean of {counted(len(scores.averaged), 'task')}"
    if len(record.contenders) == 1:
        return [f"{where} {next(iter(known))} scores {next(iter(known.values())):.1f}% {over}."]
    if not scores.is_even(scores.averaged, record.contenders, longest):
        return [f"{where} not all of the {len(record.contenders)} contenders have answered as many samples yet."]
    best = _first({name: percent_text(value) for name, value in known.items()}, known, largest=True)
    if len(best) == len(known) > 1:
        return [f"{where} all contenders score alike, {known[best[0]]:.1f}% {over}."]
    told = f"{where} {_listed(best)} {'scores' if len(best) == 1 else 'score'} best, {known[best[0]]:.1f}% {over}"
    if UNSCALED in known and UNSCALED not in best:
        told += f"; {UNSCALED}, the unscaled model, {known[UNSCALED]:.1f}%"
    return [told + "."]


def _best_perplexity(record: EvaluationRecord) -> list[str]:
    if record.text_losses.empty:
        return []
    frame = perplexities(record.text_losses)
    frame = frame[frame["form"] == ("sliding" if (frame["form"] == "sliding").any() else frame["form"].iloc[0])]
    longest = int(frame["length"].max())
    chosen = frame[frame["length"] == longest]
    known = {
        str(name): float(value)
        for name, value in zip(chosen["contender"], chosen["perplexity"], strict=True)
        if math.isfinite(value)
    }
    if not known:
        return []
    where = f"In windows of {longest:,} tokens"
    if len(record.contenders) == 1:
        return [f"{where} the perplexity of text is {perplexity_text(next(iter(known.values())))}."]
    if len(chosen) < len(record.contenders) or chosen["num_texts"].nunique() > 1:
        return [f"{where} not all of the {len(record.contenders)} contenders have read as many texts yet."]
    best = _first({name: perplexity_text(value) for name, value in known.items()}, known, largest=False)
    value = perplexity_text(known[best[0]])
    if len(best) == len(known) > 1:
        return [f"{where} the perplexity of text is {value} for every contender."]
    told = f"{where} {_listed(best)} {'has' if len(best) == 1 else 'have'} the lowest "
    told += f"perplexity of text, {value}"
    if UNSCALED in known and UNSCALED not in best:
        told += f"; {UNSCALED} {perplexity_text(known[UNSCALED])}"
    return [told + "."]


def _kept(record: EvaluationRecord) -> list[str]:
    switched = record.retention[record.retention["serving"] == "switched"]
    if switched.empty:
        return []
    moved = switched.loc[~(switched["largest_difference"].astype(float) == 0.0), "contender"].astype(str)
    if moved.empty:
        return ["Served with the window switch, every contender gives the original model's logits inside its window."]
    names = list(dict.fromkeys(moved))
    verb = "moves" if len(names) == 1 else "move"
    return [f"Served with the window switch, {_listed(names)} {verb} the original model's logits inside its window."]


def _table(record: EvaluationRecord, scores: Scores) -> str:
    if not scores.lengths:
        return ""
    overall = {(name, length): scores.overall(name, length) for name in record.contenders for length in scores.lengths}
    groups = []
    if len(scores.tasks) > 1 and scores.averaged:
        over = counted(len(scores.averaged), "task")
        at = " measured at every length" if len(scores.averaged) < len(scores.tasks) else ""
        groups = [(f"all: mean of the {over}{at}", _rows(record, scores, overall, scores.averaged))]
    for task in scores.tasks:
        values = {key: scores.percent.get((task, *key)) for key in overall}
        groups.append((task, _rows(record, scores, values, [task])))
    header = ("contender", *(f"{length:,}" for length in scores.lengths))
    caption = "Score by task, contender and length in tokens, percent; the best of a task and length is bold"
    notes = [f"Each score is the mean over {_num_samples(record)}."]
    if any(record.is_beyond(*key) for key in overall):
        notes.append(f"{BEYOND}: longer than the factors are for.")
    if len(scores.percent) < len(scores.tasks) * len(overall):
        notes.append("A dash: not measured; all has one where any of its tasks has.")
    if scores.ruler_tasks and scores.missing_ruler_tasks:
        notes.append(
            f"Of RULER's thirteen tasks not measured, and in no average: {', '.join(scores.missing_ruler_tasks)}."
        )
    if record.config.get("factors") and not record.factors_of:
        notes.append("The run does not hold its factors, so that lengths beyond their target are not marked.")
    return grouped_table(caption, header, groups, classes="numbers") + element("p", " ".join(notes), classes="small")


def _rows(
    record: EvaluationRecord, scores: Scores, values: Mapping[tuple[str, int], float | None], tasks: Sequence[str]
) -> list[list[str | Cell]]:
    best = {
        length: _best_at(record, values, length) if scores.is_even(tasks, record.contenders, length) else []
        for length in scores.lengths
    }
    return [
        [
            name,
            *(
                Cell(
                    percent_text(values[name, length]) + BEYOND * record.is_beyond(name, length),
                    BOLD if name in best[length] else "",
                )
                for length in scores.lengths
            ),
        ]
        for name in record.contenders
    ]


def _best_at(record: EvaluationRecord, values: Mapping[tuple[str, int], float | None], length: int) -> list[str]:
    """Return the contenders with the best value; none where all are alike."""
    given = {name: values[name, length] for name in record.contenders}
    known = {name: value for name, value in given.items() if value is not None and not math.isnan(value)}
    shown = {name: percent_text(value) for name, value in known.items()}
    best = _first(shown, known, largest=True) if known else []
    return [] if len(best) == len(given) else best


def _first(shown: Mapping[str, str], values: Mapping[str, float], *, largest: bool) -> list[str]:
    """Return the names of the best value, all of them where several have it to the digits that are shown."""
    best = (max if largest else min)(values, key=values.__getitem__)
    return [name for name, text in shown.items() if text == shown[best]]


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _num_samples(record: EvaluationRecord) -> str:
    """Return how many samples stand behind a score of the table."""
    counts = record.scores.groupby(["contender", "task", "length"]).size()
    low, high = int(counts.min()), int(counts.max())
    return counted(low, "sample") if low == high else f"{low} to {high} samples"
