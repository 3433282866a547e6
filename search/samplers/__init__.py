"""Samplers: how the next candidate is chosen, each an `optuna.samplers.BaseSampler`."""
