"""Mutations, by what they understand of a file: nothing, nested values, zip archives, pickles, ..."""
