"""Training: recipes that serve full-size and small models alike, each driven by one TOML file."""

from featinv_fast.train.run import run
from featinv_fast.train.settings import Recipe, read_recipe

__all__ = ["Recipe", "read_recipe", "run"]
