"""The recipes that make the built-in engine, in the order backbone, autoencoder, base, controlnet, distillation."""

from pathlib import Path

FOLDER = Path(__file__).parent
