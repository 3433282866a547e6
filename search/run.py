#!/usr/bin/env python3
"""Entry point of `ray job submit --working-dir . -- search/run.py ...`: the same program as `ropewalk search ...`."""

import sys
from pathlib import Path

# Running this file puts its own folder first on the path, where modules could shadow others; the root belongs there.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from search.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(["search", *sys.argv[1:]]))
