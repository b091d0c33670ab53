"""The built-in engine from nothing: train by the recipes, export, measure on held-out scenes, write the model card."""
