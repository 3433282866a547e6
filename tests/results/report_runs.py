"""Small runs with numbers that are known by heart, written with the project's own files, and a look into a page."""

import html
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

from results.measurement import Measurement, candidate_key
from results.report_parts.record import Candidate
from results.run_directory import RunDirectory
from results.status import RunStatus
from results.store import MeasurementStore
from results.summary import MethodResult, ParetoPoint, Summary
from rope.factors import RescaleFactors
from rope.methods import METHODS

NUM_DOCUMENTS = 8
LOSSES = {"longrope2-search": 0.1, "yarn": 0.2, "linear": 3.0}
"""Loss of each method on a document, nats per token; a few documents below differ."""
WORSE_FOR_SEARCH = (2, 5)
"""Held-out documents on which the search loses more than YaRN."""


def factors(method: str, *, shift: float = 0.0) -> RescaleFactors:
    formula = METHODS[method.removesuffix("-search")](8, 500.0, original_length=256, target_length=1024)
    values = [value + shift for value in formula.values]
    return replace(formula.with_values(values, method=method), attention_temperature=1.25)


ALL = {name: factors(name, shift=0.25 * (name == "longrope2-search")) for name in LOSSES}


def loss_of(method: str, document: int) -> float:
    return 0.5 if method == "longrope2-search" and document in WORSE_FOR_SEARCH else LOSSES[method]


def measured(method: str, number: int, split: str, length: int) -> Measurement:
    return Measurement(
        candidate=candidate_key(ALL[method]),
        document=f"{split}-{length}-{number}",
        split=split,
        depth=(number + 0.5) / NUM_DOCUMENTS,
        sum_nll=4 * (loss_of(method, number) if length == 1024 else 0.01),
        num_tokens=4,
        seconds=0.25,
        flops=1e9,
        gradient=(0.0,) * 5 if method == "longrope2-search" and split == "search" else None,
    )


def candidates() -> list[Candidate]:
    return [
        Candidate(
            key=candidate_key(one),
            method=name,
            values=one.values,
            attention_temperature=one.attention_temperature,
            critical_dim=one.critical_dim,
            perplexity=math.exp(LOSSES[name]),
            is_searched=name.endswith("-search"),
        )
        for name, one in ALL.items()
    ]


def result(method: str) -> MethodResult:
    mean = sum(loss_of(method, number) for number in range(NUM_DOCUMENTS)) / NUM_DOCUMENTS
    return MethodResult(
        name=method,
        kind="searched" if method.endswith("-search") else "formula",
        critical_dim=ALL[method].critical_dim,
        attention_temperature=1.25,
        search_perplexity=math.exp(LOSSES[method]),
        heldout_perplexity=math.exp(mean),
        original_perplexity=math.exp(0.01),
        is_picked=method.endswith("-search"),
    )


def a_summary(methods: Sequence[str] = tuple(LOSSES), *, front: tuple[ParetoPoint, ...] = ()) -> Summary:
    return Summary(
        model="models/tiny",
        original_length=256,
        target_length=1024,
        seed=3,
        num_document_forwards=72,
        num_search_forwards=40,
        seconds=7200.0,
        run_directory="elsewhere",
        methods=tuple(map(result, methods)),
        front=front,
    )


def status(state: str = "running", reason: str | None = None) -> RunStatus:
    return RunStatus(
        state=state,  # type: ignore[arg-type]
        reason=reason,
        model="models/tiny",
        original_length=256,
        target_length=1024,
        phase="searching",
        num_candidates=3,
        total_candidates=9,
        num_documents=24,
        total_documents=90,
        best_perplexity=1.1,
        best_method="yarn",
        documents_per_second=4.0,
        utilisation=0.9,
        num_workers=1,
        num_retries=0,
        num_failed=0,
        seconds=120.0,
        seconds_left=300.0,
        updated="2026-01-02T03:04:05+00:00",
    )


def write_run(path: Path, *, model: str = "models/tiny", is_finished: bool = True) -> Path:
    settings = {"model": model, "original_length": 256, "target_length": 1024, "corpus": "a corpus", "seed": 3}
    run = RunDirectory.create(path, settings, resume=False)
    lengths = [("search", 1024), *([("heldout", 1024), ("heldout", 256)] if is_finished else [])]
    documents = [
        {"id": f"{split}-{length}-{number}", "length": length}
        for split, length in lengths
        for number in range(NUM_DOCUMENTS)
    ]
    run.write_json("documents.json", documents)
    store = MeasurementStore(path)
    for split, length in lengths:
        store.add(measured(method, number, split, length) for method in LOSSES for number in range(NUM_DOCUMENTS))
    store.flush()
    if is_finished:
        run.write_text("factors.json", ALL["longrope2-search"].to_json())
        run.write_json("provenance.json", {"seed": 3, "accelerators": ["H200", "H200"], "versions": {"torch": "2.9"}})
        run.write_text("summary.json", a_summary().to_json())
    return path


def more() -> Candidate:
    return replace(candidates()[0], key="more", values=(1.0, 2.0, 3.0, 5.0), perplexity=1.5)


def text_of(page: str) -> str:
    body = page[page.index("<body>") :]
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


class Outline(HTMLParser):
    """Collects the tags of a page and what is wrong with their nesting."""

    VOID = ("meta", "br")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.faults: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)
