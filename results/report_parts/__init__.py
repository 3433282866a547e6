"""The parts of the report: what a run left, and the HTML of each section."""
