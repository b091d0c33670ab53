"""Attention among the positions of a map, or from them to a prompt."""
