"""What the subcommands of `featinv` do; the command line itself only parses."""
