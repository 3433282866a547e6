"""Whether serving engines rotate as Ropewalk does: one engine a file, each by the engine's own code."""
