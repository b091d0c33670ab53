"""What a build is asked for."""

from __future__ import annotations

import dataclasses
import enum
from pathlib import Path
from typing import TYPE_CHECKING

from featinv_fast.checks import choice, count
from featinv_fast.demo import builtin, recipes

if TYPE_CHECKING:
    from featinv_fast.train import Recipe

# In the order in which they need one another; a build makes one of the students.
RECIPES = (
    "backbone",
    "autoencoder",
    "base",
    "controlnet",
    "refined",
    "consistency",
    "trajectory",
    "pooled",
    "pooled_refined",
    "stage1",
    "stage1_refined",
    "judge",
)
STUDENTS = ("consistency", "trajectory")

# Files of the built-in engine that people look at.
CARD, PLOT, PICTURES = "README.md", "quality.png", "pictures.jpg"


class Stage(enum.StrEnum):
    """The parts of a build, in order."""

    TRAIN = "train"
    EXPORT = "export"
    MEASURE = "measure"
    INSTALL = "install"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What to build, and where.

    Attributes:
        root: folder of the recipes' results, of the engines, and of what was measured.
        out: the folder to install; by default the package's own.
        from_stage: the stage to begin with.
        changes: values that replace those of the recipes: "KEY=VALUE" for all, "RECIPE:KEY=VALUE" for one.
        student: the distillation that is made and becomes the built-in student.
        scenes: number of test scenes.
        onnx: write the ONNX graphs of the engines, with which every backend serves them; 1 MB each.
        progress: show bars on stderr.

    Raises:
        ArgumentError: an unknown student or recipe, or too few scenes.
    """

    root: Path
    out: Path = builtin.FOLDER
    from_stage: Stage = Stage.TRAIN
    changes: list[str] = dataclasses.field(default_factory=list)
    student: str = "consistency"
    scenes: int = 512
    onnx: bool = True
    progress: bool = True

    def __post_init__(self) -> None:
        choice("the student's distillation", self.student, STUDENTS)
        count("the number of scenes", self.scenes, 2)
        for change in self.changes:
            recipe, colon, _ = change.partition("=")[0].partition(":")
            if colon:
                choice(f"the recipe of --set {change}", recipe, RECIPES)

    def recipe(self, name: str) -> Recipe:
        """A recipe with the changes that concern it.

        Raises:
            ConfigError: the changes do not suit it.
        """
        from featinv_fast.train import read_recipe

        return read_recipe(recipes.FOLDER / f"{name}.toml", self.changes_of(name))

    @property
    def recipes(self) -> tuple[str, ...]:
        """What is trained, in this order."""
        return tuple(recipe for recipe in RECIPES if recipe not in STUDENTS or recipe == self.student)

    def changes_of(self, recipe: str) -> list[str]:
        """The changes that concern a recipe, those of all recipes first."""
        common = [change for change in self.changes if ":" not in change.partition("=")[0]]
        own = [change.removeprefix(f"{recipe}:") for change in self.changes if change.startswith(f"{recipe}:")]
        return common + own

    def checkpoint(self, recipe: str) -> Path:
        """What a recipe makes."""
        return self.root / f"{recipe}.safetensors"

    @property
    def engines(self) -> Path:
        """The folder of the exported engines and of the backbone as it is shipped."""
        return self.root / "engines"

    @property
    def measured(self) -> Path:
        """The folder of the figures and pictures."""
        return self.root / "measured"
