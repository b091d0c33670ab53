"""`featinv train` and `featinv distill`: a recipe in, a checkpoint out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featinv_fast.checks import require_input
from featinv_fast.errors import ArgumentError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from featinv_fast.train import Recipe

DISTILL = "distill"


def add_parser(commands: Any) -> None:
    """Add both subcommands to `commands`, what `ArgumentParser.add_subparsers` returns."""
    _add(commands.add_parser("train", help="train an autoencoder, backbone, base model or FeatInv by a recipe"))
    _add(commands.add_parser(DISTILL, help="teach a FeatInv model to make few steps, by a recipe"))


def run(options: argparse.Namespace) -> int:
    """Run the recipe of `options.config` and print the file it made; returns the exit code.

    Raises:
        ArgumentError: a recipe of the other command.
        FeatInvError: see `featinv_fast.train.run`.
    """
    _check(options)
    from featinv_fast.train import read_recipe
    from featinv_fast.train.input_files import input_files

    recipe = _read(read_recipe, options)
    if (recipe.recipe == DISTILL) != (options.command == DISTILL):
        command = DISTILL if recipe.recipe == DISTILL else "train"
        raise ArgumentError(
            "this recipe belongs to another command",
            given=f"recipe = '{recipe.recipe}'",
            expected=f"featinv {command}",
            remedy=f"run `featinv {command} --config {options.config}`",
        )
    input_files(recipe, options.root)
    from featinv_fast.train import processes
    from featinv_fast.train import run as train

    made = train(
        options.config,
        root=options.root,
        changes=options.set,
        force=options.force,
        progress=not options.quiet,
    )
    if processes.is_main():
        print(made)
    processes.end()
    return 0


def _check(options: argparse.Namespace) -> None:
    """Refuse what is known to be wrong before torch is loaded."""
    require_input(options.config, "file", expected="a recipe, a TOML file")
    require_input(options.root, "folder", expected="the folder that the recipe's relative paths start from")
    keys = [change.partition("=")[0].strip() for change in options.set]
    for change, key in zip(options.set, keys, strict=True):
        if "=" not in change or not key:
            raise ArgumentError(
                "this is no change of a recipe",
                given=change,
                expected="KEY=VALUE, as in training.steps=100",
                remedy="write it so",
            )
    repeated = [key for place, key in enumerate(keys) if key in keys[:place]]
    if repeated:
        raise ArgumentError(
            "a value is replaced twice",
            given=f"--set {repeated[0]}",
            expected="each key once",
            remedy="leave the first one out, which would have no effect",
        )


def _read(read_recipe: Callable[..., Recipe], options: argparse.Namespace) -> Recipe:
    """The recipe. What is wrong with `--set` is wrong usage, what is wrong with the file is not."""
    try:
        return read_recipe(options.config, options.set)
    except ConfigError as error:
        if not options.set:
            raise
        read_recipe(options.config, ())  # raises where the file itself is wrong
        raise ArgumentError(
            error.problem, given=error.given, expected=error.expected, remedy=error.remedy or "correct --set"
        ) from error


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
