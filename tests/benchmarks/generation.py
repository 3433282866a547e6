"""How fast text is generated inside the original window: here, and by transformers' own `generate`.

Both decode greedily with one model in one process and take turns, so that a machine that slows down slows both. Each
writes all tokens that it is asked for, and their tokens are compared: in float32 a run in which they differ is void
and exits 1. A last table says what the window switch costs, which transformers does not make.

    python -m tests.benchmarks.generation --model workers/reference/model
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch
import transformers
from rich.console import Console
from rich.table import Table

from rope.factors import RescaleFactors
from rope.methods import METHODS
from workers.decoding import Decoding
from workers.generate import generate
from workers.geometry import rope_geometry
from workers.speed import device_name, synchronize
from workers.threads import set_threads

TARGET = 0.9
"""Throughput that this package's generation must reach, as a share of transformers'."""
SCALE = 4
CONSOLE = Console(width=120, highlight=False, markup=False, emoji=False)

Prompts = list[list[int]]


class Cell(NamedTuple):
    """What is generated at once."""

    num_rows: int
    is_mixed: bool
    """Whether prompts are of unlike length, from half the longest up."""


def main() -> None:
    """Measure, print the tables, and say whether tokens and throughput are as they must be."""
    options = parsed()
    set_threads(None)
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype))
    model.to(device)
    rotary_dim, base, window, *_ = rope_geometry(model.config)
    long = METHODS["yarn"](rotary_dim, base, original_length=window, target_length=SCALE * window)
    prompt_length = min(options.prompt, window - options.new)
    if prompt_length < 2:
        sys.exit(f"--new must leave room for a prompt in the window of {window} tokens, got {options.new}")
    table = Table("rows", "lengths", "prompt", "new", "ropewalk tokens/s", "transformers tokens/s", "ratio", "same")
    table.title = f"{options.model}, {options.dtype}, {device_name(device)}"
    faults: list[str] = []
    for cell in (
        Cell(rows, is_mixed) for rows in options.rows for is_mixed in (False, True) if rows > 1 or not is_mixed
    ):
        prompts = random_prompts(cell, prompt_length, model.config.get_text_config().vocab_size)
        ours, theirs = rates(model, prompts, long, options)
        is_same = tokens_here(model, prompts, long, options.new) == tokens_there(model, prompts, options.new)
        name = f"{cell.num_rows} rows, {'mixed' if cell.is_mixed else 'equal'} lengths"
        if not is_same and options.dtype == "float32":
            faults.append(f"{name}: other tokens than transformers'")
        if ours < TARGET * theirs:
            faults.append(f"{name}: {ours / theirs:.2f} of transformers' throughput, under {TARGET}")
        figures = (f"{ours:.0f}", f"{theirs:.0f}", f"{ours / theirs:.2f}", "yes" if is_same else "no")
        table.add_row(str(cell.num_rows), name.split()[2], str(prompt_length), str(options.new), *figures)
    CONSOLE.print(table)
    CONSOLE.print(switch_table(model, window, long, options))
    if faults:
        sys.exit("\n".join(faults))


def parsed() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="workers/reference/model", help="folder of a model")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="float32")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16], help="prompts at once")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of the longest prompt")
    parser.add_argument("--new", type=int, default=100, help="tokens generated for each")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each, of which the median counts")
    return parser.parse_args()


def random_prompts(cell: Cell, length: int, vocabulary: int) -> Prompts:
    """Return prompts of random tokens."""
    generator = torch.Generator().manual_seed(0)
    least = length // 2 if cell.is_mixed else length
    lengths = torch.linspace(least, length, cell.num_rows).long().tolist()
    return [torch.randint(vocabulary, (number,), generator=generator).tolist() for number in lengths]


def tokens_here(model: Any, prompts: Prompts, long: RescaleFactors, num_new_tokens: int) -> Prompts:
    """Return what this package writes."""
    decoding = Decoding(num_new_tokens=num_new_tokens, stop_token_ids=(), batch_size=len(prompts))
    return [row.token_ids for row in generate(model, prompts, decoding, long=long)]


def tokens_there(model: Any, prompts: Prompts, num_new_tokens: int) -> Prompts:
    """Return what transformers writes, with prompts padded on the left."""
    longest = max(len(prompt) for prompt in prompts)
    pads = [longest - len(prompt) for prompt in prompts]
    ids = torch.tensor([[0] * num_pads + prompt for num_pads, prompt in zip(pads, prompts, strict=True)])
    mask = torch.tensor([[0] * num_pads + [1] * (longest - num_pads) for num_pads in pads])
    found = model.generate(
        ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=num_new_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    tokens: Prompts = found[:, longest:].tolist()
    return tokens


def rates(model: Any, prompts: Prompts, long: RescaleFactors, options: argparse.Namespace) -> tuple[float, float]:
    """Return tokens per second, here and there."""
    ways: list[Callable[[], object]] = [
        lambda: tokens_here(model, prompts, long, options.new),
        lambda: tokens_there(model, prompts, options.new),
    ]
    for way in ways:
        way()  # the first call of anything is slower
    turns = [[seconds(way, model.device) for way in ways] for _ in range(options.repeats)]
    ours, theirs = (len(prompts) * options.new / median(times) for times in zip(*turns, strict=True))
    return ours, theirs


def seconds(way: Callable[[], object], device: torch.device) -> float:
    """Return how long a call takes."""
    synchronize(device)
    start = perf_counter()
    way()
    synchronize(device)
    return perf_counter() - start


def switch_table(model: Any, window: int, long: RescaleFactors, options: argparse.Namespace) -> Table:
    """Return what generation costs across the border, and with the same factors on both sides of it."""
    prompts = random_prompts(Cell(1, False), window - options.new // 2, model.config.get_text_config().vocab_size)
    decoding = Decoding(num_new_tokens=options.new, stop_token_ids=())
    ways: Sequence[Callable[[], object]] = [
        lambda: generate(model, prompts, decoding, long=long),
        lambda: generate(model, prompts, decoding, long=long, short=long),
    ]
    turns = [[seconds(way, model.device) for way in ways] for _ in range(options.repeats)]
    table = Table("one row", "prompt", "new", "seconds", title="Half of the new tokens lie beyond the window")
    for name, times in zip(("with the switch", "long factors from the start"), zip(*turns, strict=True), strict=True):
        table.add_row(name, str(len(prompts[0])), str(options.new), f"{median(times):.3f}")
    return table


if __name__ == "__main__":
    main()
