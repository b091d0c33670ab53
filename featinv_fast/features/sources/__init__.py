"""Where backbones come from. A source is one file here and one line in `SOURCES`."""

from __future__ import annotations

from featinv_fast.errors import ArgumentError
from featinv_fast.features.sources.base import Network, Source
from featinv_fast.features.sources.own_module import OwnModule
from featinv_fast.features.sources.timm_ import Timm
from featinv_fast.features.sources.torchvision_ import Torchvision
from featinv_fast.features.sources.transformers_ import Transformers

# The first that serves a name opens it; timm, whose names have no form of their own, is asked last.
SOURCES: tuple[Source, ...] = (Torchvision(), Transformers(), OwnModule(), Timm())

__all__ = ["SOURCES", "Network", "Source", "source_of"]


def source_of(name: object) -> Source:
    """The source that opens networks of this name.

    Raises:
        ArgumentError: it is no name.
    """
    if isinstance(name, str):
        for source in SOURCES:
            if source.serves(name):
                return source
    raise ArgumentError(
        "unknown backbone",
        given=name,
        expected=", ".join(source.words for source in SOURCES),
        remedy="name a backbone so, such as convnext_base or torchvision:resnet50",
    )
