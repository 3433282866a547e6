"""`ropewalk evaluate`: factors and formulas measured side by side, task by task."""
