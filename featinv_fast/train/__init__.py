"""Training: recipes that serve full-size and small models alike, each driven by one TOML file."""

from featinv_fast.train.reading import read_recipe
from featinv_fast.train.run import run
from featinv_fast.train.settings import Recipe

__all__ = ["Recipe", "read_recipe", "run"]
