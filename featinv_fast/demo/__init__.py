"""The demonstration: a small synthetic world to train, measure and play in, and what was trained in it.

Scenes of one to three shaped, coloured and patterned objects, with everything known about them. numpy is all that they
need; the built-in backbone needs torch and timm:

    scenes = demo.load_scenes(16)  # .images .labels .concepts .descriptions
    images = Runtime().invert(scenes.features).images
"""

from __future__ import annotations

from featinv_fast.demo.builtin import ENGINES, backbone, backbone_spec, engine_path, judge, load_engine, results
from featinv_fast.demo.labelled_scenes import LabelledScenes, load_scenes
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
    "ENGINES",
    "LENGTHS",
    "MAX_OBJECTS",
    "SEVERITIES",
    "Corruption",
    "LabelledScenes",
    "SceneDataset",
    "Scenes",
    "Split",
    "Style",
    "annotate",
    "backbone",
    "backbone_spec",
    "corrupt",
    "describe",
    "draw_scenes",
    "engine_path",
    "judge",
    "load_engine",
    "load_scenes",
    "object_masks",
    "render",
    "results",
]
