"""Work in bulk that can be stopped or killed at any moment and goes on where it was."""
