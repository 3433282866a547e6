"""Where a model runs: loading, installing rescale factors, scoring needle documents, here or on a Ray cluster."""
