"""`featinv train` and `featinv distill`: a recipe in, a checkpoint out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from featinv_fast.errors import ConfigError

DISTILL = "distill"


def add_parser(commands: Any) -> None:
    """Add both subcommands to `commands`, what `ArgumentParser.add_subparsers` returns."""
    _add(commands.add_parser("train", help="train an autoencoder, backbone, base model or FeatInv by a recipe"))
    _add(commands.add_parser(DISTILL, help="teach a FeatInv model to make few steps, by a recipe"))


def run(options: argparse.Namespace) -> int:
    """Run the recipe of `options.config` and print the file it made; returns the exit code.

    Raises:
        ConfigError: a recipe of the other command.
        FeatInvError: see `featinv_fast.train.run`.
    """
    from featinv_fast.train import read_recipe
    from featinv_fast.train import run as train

    recipe = read_recipe(options.config, options.set)
    if (recipe.recipe == DISTILL) != (options.command == DISTILL):
        command = DISTILL if recipe.recipe == DISTILL else "train"
        raise ConfigError(
            "this recipe belongs to another command",
            given=f"recipe = '{recipe.recipe}'",
            expected=f"featinv {command} --config {options.config}",
        )
    print(
        train(
            options.config,
            root=options.root,
            changes=options.set,
            force=options.force,
            progress=not options.quiet,
        )
    )
    return 0


def _add(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=run, command=parser.prog.rpartition(" ")[2])
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="the recipe, a TOML file")
    parser.add_argument("--root", type=Path, default=Path(), help="what its relative paths start from; default: here")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="replace a value, as in training.steps=100"
    )
    parser.add_argument(
        "--force", action="store_true", help="replace a file of the recipe's `out` that another run or program wrote"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
