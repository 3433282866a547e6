"""Asks an engine in a process of its own: stubs, crashes and other versions of packages stay there.

Run as a program, this file is the other end: it reads probes and writes rotations.
"""

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from workers.parity.probe import Probe, Rotation

LIMIT_SECONDS = 1800
"""How long an engine may take: the tables of millions of positions take a minute."""


class EngineError(RuntimeError):
    """The engine's code could not be run here; the message is the last line that names an error, else the last."""


def rotations(module: str, probe: Probe, *, search_paths: Sequence[Path] = ()) -> list[Rotation]:
    """Return what an engine rotates by.

    Args:
        module: Dotted name of the module here whose `rotate` asks the engine.
        probe: What it is asked.
        search_paths: Folders that its packages are imported from before all others.

    Returns:
        One rotation per input.

    Raises:
        EngineError: Its code failed, or it took too long.
    """
    answer = ask("workers.parity.process", [module], probe.to_json(), search_paths=search_paths)
    return [Rotation(*fields) for fields in json.loads(answer)]


def ask(program: str, arguments: Sequence[str], question: str, *, search_paths: Sequence[Path]) -> str:
    """Return the last line that a module writes, run as a program with a question at its input.

    Args:
        program: Dotted name of the module.
        arguments: Its arguments.
        question: Its input.
        search_paths: Folders that packages are imported from before all others.

    Returns:
        The line.

    Raises:
        EngineError: It ended otherwise than well.
    """
    here = Path(__file__).parents[2]
    paths = [*map(str, search_paths), str(here), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-m", program, *arguments],
            input=question,
            capture_output=True,
            text=True,
            env=environment,
            timeout=LIMIT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"no answer in {LIMIT_SECONDS} seconds") from error
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    if done.returncode or not done.stdout.strip():
        errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception): ", line)]
        last = (errors or lines or [f"its process ended with {done.returncode}"])[-1]
        raise EngineError(last.strip()[:300])
    return done.stdout.splitlines()[-1]


def main() -> None:
    """Answer the probe at the standard input through the module that the first argument names."""
    probe = Probe.from_json(sys.stdin.read())
    answer = importlib.import_module(sys.argv[1]).rotate(probe)
    sys.stdout.write("\n" + json.dumps(answer) + "\n")  # engines write to it too


if __name__ == "__main__":
    main()
