"""Small evaluations with numbers that are known by heart, written with the project's own files."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from results.evaluation import HARNESS, RETENTION, SCORES, TEXT_LOSSES, HarnessScore, Retention, SampleScore, TextLoss
from results.measurement import candidate_key
from results.row_store import RowStore
from results.run_directory import RunDirectory
from rope.factors import RescaleFactors
from rope.methods import METHODS

KINDS: Mapping[str, Any] = {SCORES: SampleScore, TEXT_LOSSES: TextLoss, RETENTION: Retention, HARNESS: HarnessScore}


def factors(method: str, *, target_length: int = 1024) -> RescaleFactors:
    return METHODS[method](8, 500.0, original_length=256, target_length=target_length)


FACTORS = {"none": factors("none"), "yarn": factors("yarn", target_length=512)}


def key_of(contender: str) -> str:
    return candidate_key(FACTORS[contender]) if contender in FACTORS else "0" * 16


def answers(
    contender: str, task: str, length: int, scores: Sequence[float | None], *, depth: float | None = None
) -> list[SampleScore]:
    return [
        SampleScore(
            contender=contender,
            candidate=key_of(contender),
            task=task,
            sample=f"{depth}-{number}",
            length=length,
            depth=depth,
            score=score,
            text="<b>12</b>",
            num_generated=10,
            seconds=0.5,
        )
        for number, score in enumerate(scores)
    ]


def text_loss(
    contender: str, length: int, loss: float | None, *, text: str = "0", form: str = "sliding", law: float = math.nan
) -> TextLoss:
    """A text of 7 buckets; their losses follow (100 / c)^0.5 + law where that is given, else they rise."""
    firsts = [2**number for number in range(3, 10)]
    lasts = [2 * first - 1 for first in firsts]
    losses = [(100 / math.sqrt(first * last)) ** 0.5 + law for first, last in zip(firsts, lasts, strict=True)]
    rising = [None if loss is None else 200 * (loss + number) for number in range(7)]
    sums = rising if math.isnan(law) else [200 * one for one in losses]
    return TextLoss(
        contender=contender,
        candidate=key_of(contender),
        form=form,
        length=length,
        stride=64,
        text=text,
        num_text_tokens=2048,
        sum_nll=loss,
        num_tokens=7 * 200,
        weighted_loss=loss,
        weight=1.0,
        first_contexts=firsts,
        last_contexts=lasts,
        bucket_sums=sums,
        bucket_counts=[200] * 7,
        seconds=1.0,
    )


def kept(contender: str, serving: str, *, moved: float | None, text: str = "0") -> Retention:
    return Retention(
        contender=contender,
        candidate=key_of(contender),
        serving=serving,
        length=64,
        text=text,
        largest_difference=moved,
        sum_divergence=None if moved is None else 3.2 * bool(moved),
        num_same_top=48 if moved else 64,
        num_positions=64,
        seconds=0.25,
    )


def harness(contender: str, metric: str, value: float | None, stderr: float | None) -> HarnessScore:
    return HarnessScore(
        contender=contender,
        candidate=key_of(contender),
        task="arc",
        version="1.0",
        metric=metric,
        value=value,
        stderr=stderr,
        num_samples=200,
        seconds=8.0,
    )


def write_evaluation(
    path: Path,
    *,
    names: Sequence[str] = ("none", "yarn"),
    scores: Sequence[SampleScore] = (),
    texts: Sequence[TextLoss] = (),
    retention: Sequence[Retention] = (),
    harness_scores: Sequence[HarnessScore] = (),
    model: str = "models/tiny",
    has_factors: bool = True,
    is_finished: bool = True,
) -> Path:
    rows: dict[str, Sequence[Any]] = {SCORES: scores, TEXT_LOSSES: texts, RETENTION: retention, HARNESS: harness_scores}
    measured = {name: own for name, own in rows.items() if own}
    settings = {
        "model": model,
        "lengths": "256,1024",
        "effective_threshold": 85.6,
        "seed": 3,
        "contenders": {name: key_of(name) for name in names},
        "samples_sha256": dict.fromkeys(measured, "0" * 64),
    }
    run = RunDirectory.create(path, settings, resume=False)
    if has_factors:
        known = {name: json.loads(FACTORS[name].to_json()) for name in names if name in FACTORS}
        run.write_json("contenders.json", known)
    for name, own in measured.items():
        store = RowStore(path, name, KINDS[name])
        store.add(own)
        if is_finished:
            store.finish()
    return path
