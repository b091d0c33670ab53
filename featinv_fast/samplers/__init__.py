"""Samplers as tables of per-step scalars."""
