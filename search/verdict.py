"""What a run says at its end: the tables, who won, and why."""

import math

from rich.console import Console

from results.summary import Summary, best_formula
from results.table import front_table, results_table


def show(summary: Summary, console: Console) -> None:
    """Print what a run found, its directory last."""
    if summary.front:
        console.print(front_table(summary))
    console.print(results_table(summary))
    console.print(verdict(summary), highlight=False)
    if cost := cost_of_scoring(summary):
        console.print(cost, highlight=False)
    console.print(summary.run_directory, highlight=False, soft_wrap=True)


def cost_of_scoring(summary: Summary) -> str:
    """Return what scoring took of the workers' devices, in a sentence; empty if nothing is known."""
    found = "; ".join(part for part in (summary.speed.computing, summary.speed.memory) if part)
    return f"Scoring at {summary.target_length} tokens: {found}." if found else ""


def verdict(summary: Summary) -> str:
    """Return who won and why, in sentences."""
    both = bool(summary.front)
    formula = best_formula(summary.methods, both_lengths=both)
    loss = "held-out needle loss (nats) at both lengths" if both else "held-out needle loss (nats)"
    winner = summary.winning_result
    gap = "" if math.isnan(winner.gap) else f" It loses {winner.gap:+.3f} nats more there than on search documents."
    spent = f" The search took {summary.num_search_forwards} document forwards."
    if winner.kind == "formula":
        why = "no searched candidate could be measured"
        if winner.is_picked:
            why = "it is the knee of the front"
        elif any(result.is_picked for result in summary.methods):
            why = f"the candidate that was picked has no lower {loss}"
        return f"The formula {winner.name} at temperature {winner.attention_temperature:.4f} wins: {why}.{gap}{spent}"
    picked = "the knee of the front" if both else "picked by the validation documents"
    return (
        f"{summary.winner}, {picked}: {loss} {summary.gain:.1%} below the best formula's, {formula.name} at "
        f"temperature {formula.attention_temperature:.4f}.{gap}{spent}"
    )
