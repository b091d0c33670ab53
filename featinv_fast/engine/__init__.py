"""The engine folder: manifest, graph specs, integrity and atomic installation. Standard library only."""

from featinv_fast.engine.folder import EngineFolder, open_engine
from featinv_fast.engine.graphs import Dim, GraphSpec, TensorSpec, graph_specs
from featinv_fast.engine.install import Stage, staging
from featinv_fast.engine.manifest import (
    FORMAT_VERSION,
    AotiInfo,
    EngineFamily,
    Exactness,
    FileInfo,
    Manifest,
    OptionInfo,
    ParityInfo,
    ParityStatus,
    PromptInfo,
    SourceInfo,
    TargetInfo,
)

__all__ = [
    "FORMAT_VERSION",
    "AotiInfo",
    "Dim",
    "EngineFamily",
    "EngineFolder",
    "Exactness",
    "FileInfo",
    "GraphSpec",
    "Manifest",
    "OptionInfo",
    "ParityInfo",
    "ParityStatus",
    "PromptInfo",
    "SourceInfo",
    "Stage",
    "TargetInfo",
    "TensorSpec",
    "graph_specs",
    "open_engine",
    "staging",
]
