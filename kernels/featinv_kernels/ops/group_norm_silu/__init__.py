"""GroupNorm, SiLU and a bias before them, over maps whose channels come last."""
