"""RULER's tasks, one family a file."""
