"""What was found: measurements, the store and the run directory that keep them, the summary, and exports."""
