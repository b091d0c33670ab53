"""The command line `featinv`: one file for each subcommand. Data on stdout, progress and messages on stderr."""

from featinv_fast.cli.main import main

__all__ = ["main"]
