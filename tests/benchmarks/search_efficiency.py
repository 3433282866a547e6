"""Held-out loss of what each algorithm would pick, against the document forwards that it has spent.

Every run is the product's own: formulas, sampler, race, ledger and store on the reference model; only the paper's
evolution goes without the formulas, as the published code does. Along the way the benchmark asks what the algorithm
would pick now and, when the run is over, measures all picks on the same 160 held-out documents, which no run counts
and no run sees. A gradient counts as three forwards, since it takes the time of three.

    python -m tests.benchmarks.search_efficiency run --folder runs/efficiency --processes 2
    python -m tests.benchmarks.search_efficiency report --folder runs/efficiency --plot search-efficiency.png

Both can be said again at any time: runs that are finished are not repeated, one that was killed is taken up.
"""

import argparse
import io
import json
import logging
import math
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from needles.document import NeedleDocument
from results.measurement import candidate_key
from results.store import MeasurementStore
from rope.factors import RescaleFactors
from search.config import SearchConfig
from search.evolution import best_formula_of, evolve, measure_formulas
from search.formulas import formula_factors, warmer
from search.journal import mend_journal
from search.ledger import Ledger, Scored, ranked
from search.objectives import Objectives
from search.preparation import build_run_documents, make_sampler, panels_of
from search.progress import Plan, SearchProgress
from search.samplers.cmaes import CmaesConfig
from search.samplers.longrope2 import EvolutionConfig
from search.samplers.named import NamedConfig
from search.sections import DocumentsConfig, FormulasConfig, MonotoneConfig, SpaceConfig
from search.study import Trials, open_storage, open_study
from workers.local import LocalScorer
from workers.model import ModelDescription, describe_model, load_model
from workers.scoring import load_scoring

REFERENCE = Path("workers/reference")
NUM_HELDOUT = 160
ORIGINAL_LENGTH = 256
PAPER = "longrope2 (paper)"
DEFAULT = "gradient (default)"
PAPER_FORWARDS = 14_080
OTHER_FORWARDS = 1_408
"""Budget of the baselines: a tenth of the paper's."""
CHECKPOINTS = [round(100 * 2 ** (step / 2)) for step in range(15)]
"""Forwards after which the pick is asked for; the end of a run is always one."""

FIXED = DocumentsConfig(num_search=32)
PUBLISHED: Mapping[str, Any] = {
    "algorithm": "longrope2",
    "evolution": EvolutionConfig(population_size=128, num_generations=40),
    "documents": DocumentsConfig(num_search=10),
    "schedule": "generational",
}
"""The paper's evolution with the published code's 128 + 40 x 32 candidates on 10 documents."""
METHODS: Mapping[str, Mapping[str, Any]] = {
    PAPER: {**PUBLISHED, "racing": "none"},
    "longrope2 (paper), race": {**PUBLISHED, "racing": "wilcoxon"},
    "longrope2 (paper), race, warm": {
        **PUBLISHED,
        "racing": "wilcoxon",
        "space": SpaceConfig(attention_temperature=1.2079),  # the best formula's at 4x
    },
    DEFAULT: {},
    "gradient, critical dimension up": {"monotone": MonotoneConfig(free="critical")},
    "gradient, fixed temperature": {"monotone": MonotoneConfig(free_temperature=False)},
    "gradient, spline of 12 knots": {"monotone": MonotoneConfig(knots=12)},
    "cmaes": {"algorithm": "cmaes", "cmaes": CmaesConfig(num_generations=200), "racing": "wilcoxon"},
    "cmaes, no race": {"algorithm": "cmaes", "cmaes": CmaesConfig(num_generations=200), "racing": "none"},
    "tpe": {"algorithm": "tpe", "optuna": NamedConfig(num_candidates=2000), "documents": FIXED, "racing": "wilcoxon"},
    "tpe, no race": {
        "algorithm": "tpe",
        "optuna": NamedConfig(num_candidates=2000),
        "documents": FIXED,
        "racing": "none",
    },
    "random": {
        "algorithm": "random",
        "optuna": NamedConfig(num_candidates=2000),
        "documents": FIXED,
        "racing": "wilcoxon",
    },
    "random, no race": {
        "algorithm": "random",
        "optuna": NamedConfig(num_candidates=2000),
        "documents": FIXED,
        "racing": "none",
    },
}
"""What each algorithm is run with; all else is the product's default."""


@dataclass(frozen=True)
class Run:
    """One curve to be made."""

    method: str
    scale: int
    seed: int

    @property
    def name(self) -> str:
        """A name that can be a file's."""
        return f"{re.sub('[^a-z0-9]+', '-', self.method).strip('-')}-{self.scale}x-{self.seed}"


def planned(seeds: int) -> list[Run]:
    """Return all runs: the paper's evolution and the default first."""
    first = [Run(method, 4, seed) for method in (PAPER, DEFAULT) for seed in range(max(5, seeds))]
    far = [Run(method, 8, seed) for method in (PAPER, DEFAULT) for seed in range(max(3, seeds - 2))]
    others = [Run(method, 4, seed) for seed in range(3) for method in METHODS if method not in (PAPER, DEFAULT)]
    return first + far + others


def main() -> None:
    """Run what is missing, make one run, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "one", "report"])
    parser.add_argument("--folder", type=Path, required=True, help="where the runs are kept")
    parser.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 2)), help="runs side by side")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", help="only methods whose names contain this")
    parser.add_argument("--plot", type=Path, help="PNG file for the curves")
    parser.add_argument("--run", nargs=3, metavar=("METHOD", "SCALE", "SEED"), help="for the command one")
    options = parser.parse_args()
    if options.command == "one":
        method, scale, seed = options.run
        make(Run(method, int(scale), int(seed)), options.folder)
    elif options.command == "run":
        run_all([run for run in planned(options.seeds) if (options.only or "") in run.method], options)
    else:
        report(options.folder, options.plot)


def run_all(runs: Sequence[Run], options: argparse.Namespace) -> None:
    """Make every run that is missing, each in a process with one thread."""
    waiting = [run for run in runs if not (options.folder / f"{run.name}.json").is_file()]
    active: dict[subprocess.Popen[bytes], Run] = {}
    while waiting or active:
        while waiting and len(active) < options.processes:
            run = waiting.pop(0)
            words = ["one", "--folder", str(options.folder), "--run", run.method, str(run.scale), str(run.seed)]
            command = [sys.executable, "-m", "tests.benchmarks.search_efficiency", *words]
            active[subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})] = run
        done = next(iter(active))
        try:
            done.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            active[done] = active.pop(done)  # look at the next
            continue
        run = active.pop(done)
        Console().print(f"{run.name}: {'done' if done.returncode == 0 else 'FAILED'}", highlight=False)


def make(run: Run, folder: Path) -> None:
    """Make one curve and write it."""
    import torch

    torch.set_num_threads(1)
    logging.getLogger("search").setLevel(logging.ERROR)
    config = config_of(run)
    model = describe_model(config.model)
    documents = build_run_documents(config, model)
    scorer = LocalScorer(
        load_scoring(documents.all, load=lambda: load_model(config.model, dtype="float32", device="cpu")), documents.all
    )
    place = folder / run.name
    place.mkdir(parents=True, exist_ok=True)
    mend_journal(place)
    study = open_study(run.name, storage=open_storage(None, run_dir=place), identity={}, note="")
    store = MeasurementStore(place)
    plan = Plan(
        model=run.method,
        original_length=ORIGINAL_LENGTH,
        target_length=config.target_length,
        num_candidates=0,
        num_documents=0,
    )
    ledger = Ledger(
        trials=Trials(study),
        scorer=scorer,
        store=store,
        progress=SearchProgress(plan, console=Console(file=io.StringIO())),
        panels=panels_of(config, documents),
        objectives=Objectives(aggregate=config.aggregate),
        racing=config.race if config.races else None,
        measurements=store.recover(),
    )
    picks = follow(config, model, ledger)
    heldout = losses(ledger, [factors for _, factors in picks], documents.heldout)
    curve = [{"forwards": spent, "heldout": heldout[candidate_key(factors)]} for spent, factors in picks]
    last = picks[-1][1]
    found = {"method": run.method, "scale": run.scale, "seed": run.seed, "curve": curve}
    found |= {"values": last.values, "attention_temperature": last.attention_temperature}
    (folder / f"{run.name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def config_of(run: Run) -> SearchConfig:
    """Return the product's configuration of a run."""
    settings = dict(METHODS[run.method])
    documents = settings.pop("documents", DocumentsConfig())
    return SearchConfig(
        model=str(REFERENCE / "model"),
        corpus=str(REFERENCE / "tom_sawyer.txt"),
        target_length=ORIGINAL_LENGTH * run.scale,
        dtype="float32",
        seed=run.seed,
        documents=replace(documents, num_heldout=NUM_HELDOUT, num_original=1, num_validation=24),
        formulas=FormulasConfig(temperatures=["paper", "yarn"]),
        **settings,
    )


def follow(config: SearchConfig, model: ModelDescription, ledger: Ledger) -> list[tuple[int, RescaleFactors]]:
    """Run the search and return what it would have picked after how many forwards."""
    formulas = formula_factors(config, model)
    is_paper = config.algorithm == "longrope2" and config.evolution.population_size == 128
    is_bounded = not is_paper and config.algorithm != "gradient"  # the default ends by itself
    measured: list[Scored] = []
    picks: list[tuple[int, RescaleFactors]] = []
    if not is_paper:
        documents = ledger.panels.documents[: config.num_formula_documents]
        measured = measure_formulas(ledger, formulas, documents)
        measured += measure_formulas(ledger, warmer(best_formula_of(ledger, measured)), documents)
        picks.append((ledger.spent, best_formula_of(ledger, measured)))
    start = best_formula_of(ledger, measured) if measured else formulas[0]
    budget = OTHER_FORWARDS if is_bounded else PAPER_FORWARDS
    checkpoints = CHECKPOINTS[::2] if is_bounded else CHECKPOINTS
    for checkpoint in [*(point for point in checkpoints if point < budget), budget]:
        spent = ledger.spent
        if spent >= checkpoint:  # a generation may end beyond the next checkpoint
            continue
        sampler = make_sampler(config, model, start)
        found = evolve(ledger, sampler, schedule=config.schedule, budget=checkpoint)
        if ledger.spent == spent:
            break  # the algorithm has come to its end
        tried = [] if config.num_fresh_documents else found
        own = sampler.picks(ledger.trials.searched(sampler))
        picks.append((ledger.spent, own[0] if own else ranked(measured + tried)[0].factors))
    return picks


def losses(
    ledger: Ledger, candidates: Sequence[RescaleFactors], documents: Sequence[NeedleDocument]
) -> dict[str, float]:
    """Return held-out losses by candidate, nats per token."""
    found = ledger.perplexities(candidates, tuple(document.id for document in documents))
    return {key: math.log(perplexity) for key, perplexity in found.items()}


def report(folder: Path, plot: Path | None) -> None:
    """Print the table of all finished runs, and draw their curves."""
    curves: dict[tuple[str, int], list[list[tuple[int, float]]]] = defaultdict(list)
    ends: dict[tuple[int, int], float] = {}
    for file in sorted(folder.glob("*.json")):
        found = json.loads(file.read_text(encoding="utf-8"))
        curve = [(point["forwards"], point["heldout"]) for point in found["curve"]]
        curves[found["method"], found["scale"]].append(curve)
        if found["method"] == PAPER:
            ends[found["scale"], found["seed"]] = curve[-1][1]
    for scale in sorted({scale for _, scale in curves}):
        goal = [loss for (at, _), loss in ends.items() if at == scale]
        Console(width=110).print(table(scale, {m: c for (m, at), c in curves.items() if at == scale}, goal))
    if plot is not None:
        draw(curves, plot)


def table(scale: int, curves: Mapping[str, Sequence[Sequence[tuple[int, float]]]], goal: Sequence[float]) -> Table:
    """Return one scale's table: medians over seeds, smallest and largest in brackets."""
    target = float(np.median(goal)) if goal else math.nan
    found = Table(title=f"{scale}x: the paper's final held-out loss is {target:.4f} nats (median of {len(goal)} seeds)")
    for heading in (
        "algorithm",
        "seeds",
        "forwards to reach it",
        "paper's / these",
        "forwards in all",
        "final loss",
        "to paper's",
    ):
        found.add_column(heading, justify="left" if heading == "algorithm" else "right")
    for method in METHODS:
        if method not in curves:
            continue
        reached = [next((spent for spent, loss in curve if loss <= target), math.inf) for curve in curves[method]]
        final = [curve[-1][1] for curve in curves[method]]
        spent = [curve[-1][0] for curve in curves[method]]
        found.add_row(
            method,
            str(len(final)),
            spread(reached, "{:.0f}"),
            f"{PAPER_FORWARDS / float(np.median(reached)):.1f}",
            f"{np.median(spent):.0f}",
            spread(final, "{:.4f}"),
            f"{np.median(final) / target - 1:+.0%}",
        )
    return found


def spread(values: Sequence[float], form: str) -> str:
    """Return the median with the smallest and the largest in brackets."""
    texts = [
        "never" if math.isinf(value) else form.format(value) for value in (np.median(values), min(values), max(values))
    ]
    return f"{texts[0]} ({texts[1]} .. {texts[2]})"


def draw(curves: Mapping[tuple[str, int], Sequence[Sequence[tuple[int, float]]]], path: Path) -> None:
    """Draw the median curve of every algorithm, one panel for each scale."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    scales = sorted({scale for _, scale in curves})
    colors = pyplot.get_cmap("tab20")
    figure, panels = pyplot.subplots(
        1, len(scales), figsize=(6.5 * len(scales), 4.6), squeeze=False, layout="constrained"
    )
    for scale, panel in zip(scales, panels[0], strict=True):
        for number, method in enumerate(METHODS):
            if (method, scale) not in curves:
                continue
            grid, middle, low, high = median_curve(curves[method, scale])
            style = "--" if "no race" in method or method == PAPER else "-"
            width = 2.4 if method in (PAPER, DEFAULT) else 1.2
            (line,) = panel.plot(
                grid, middle, style, linewidth=width, label=method, color=colors(number), drawstyle="steps-post"
            )
            if method in (PAPER, DEFAULT):
                panel.fill_between(grid, low, high, alpha=0.15, color=line.get_color(), step="post")
        panel.set(
            xscale="log",
            yscale="log",
            xlabel="document forwards",
            ylabel="held-out loss of the pick, nats per token",
            title=f"reference model, {ORIGINAL_LENGTH} to {ORIGINAL_LENGTH * scale} tokens",
        )
        panel.grid(visible=True, which="both", alpha=0.25)
        panel.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def median_curve(
    curves: Sequence[Sequence[tuple[int, float]]],
) -> tuple[list[int], list[float], list[float], list[float]]:
    """Return forwards, and the median, lowest and highest loss that the seeds' picks have there."""
    first = max(curve[0][0] for curve in curves)
    grid = sorted({spent for curve in curves for spent, _ in curve if spent >= first})
    held = [[[loss for spent, loss in curve if spent <= point][-1] for curve in curves] for point in grid]
    middle, low, high = (np.array([function(row) for row in held]).tolist() for function in (np.median, min, max))
    return grid, middle, low, high


if __name__ == "__main__":
    main()
