"""The mathematics of RoPE rescale factors: numpy float64 only, no model, no file but the factors' own."""
