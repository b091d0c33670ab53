"""Exact model-to-model transformations, one per file, each proven equal to the plain model in float64."""
