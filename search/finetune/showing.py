"""A fine-tuning's outcome on the terminal."""

from rich.console import Console
from rich.table import Table

from results.tuning_outcome import Outcome, findings, outcome_rows


def show(outcome: Outcome, console: Console) -> None:
    """Print the table of what was measured before and after, what it means, and where the model is.

    Args:
        outcome: Of a finished fine-tuning.
        console: Where to.
    """
    table = Table(title=f"{outcome.model}: {outcome.num_steps} steps with {outcome.method} factors", show_edge=False)
    table.add_column("measured on held-out text")
    for name in ("before", "after", "change"):
        table.add_column(name, justify="right")
    for row in outcome_rows(outcome):
        table.add_row(*row)
    table.caption = (
        f"Up to {outcome.original_length} tokens with the rotation of the short window, beyond with the factors. Lower "
        "is better."
    )
    console.print(table)
    for finding in findings(outcome):
        console.print(finding)
    console.print(outcome.run_directory, soft_wrap=True)
