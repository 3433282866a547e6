"""What to try next, and the loop: the search over rescale factors and the `ropewalk` command."""
