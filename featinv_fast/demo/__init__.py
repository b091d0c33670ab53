"""The demonstration: a small synthetic world to train, measure and play in.

Scenes of one to three shaped, coloured and patterned objects, with everything known about them. numpy is all it needs.
"""

from __future__ import annotations

from featinv_fast.demo.world.concepts import CONCEPTS, annotate, describe
from featinv_fast.demo.world.corruptions import CORRUPTION_PARAMETERS, SEVERITIES, Corruption, corrupt
from featinv_fast.demo.world.dataset import LENGTHS, SceneDataset
from featinv_fast.demo.world.render import object_masks, render
from featinv_fast.demo.world.scenes import Scenes, draw_scenes
from featinv_fast.demo.world.vocabulary import ABSENT, CLASS_NAMES, MAX_OBJECTS, Split, Style

__all__ = [
    "ABSENT",
    "CLASS_NAMES",
    "CONCEPTS",
    "CORRUPTION_PARAMETERS",
    "LENGTHS",
    "MAX_OBJECTS",
    "SEVERITIES",
    "Corruption",
    "SceneDataset",
    "Scenes",
    "Split",
    "Style",
    "annotate",
    "corrupt",
    "describe",
    "draw_scenes",
    "object_masks",
    "render",
]
