"""The constants by which a backbone's images are normalised: the model's own, unless others are stated."""

from __future__ import annotations

import warnings
from typing import Any

Constants = tuple[float, float, float]


class BackboneNormalisationWarning(UserWarning):
    """Images are normalised with other constants than those that the backbone was published with."""


def constants(model: Any, mean: Constants | None, std: Constants | None) -> tuple[Constants, Constants]:
    """Mean and standard deviation of RGB in [0, 1] for a timm model; a warning where they are not its own.

    Args:
        model: what timm made.
        mean: what is stated; None is the model's own.
        std: what is stated; None is the model's own.
    """
    defaults = model.pretrained_cfg
    own: tuple[Constants, Constants] = (tuple(defaults["mean"]), tuple(defaults["std"]))
    used: tuple[Constants, Constants] = (own[0] if mean is None else mean, own[1] if std is None else std)
    if used != own:
        warnings.warn(
            BackboneNormalisationWarning(
                f"images are normalised with mean {used[0]} and std {used[1]}, as is stated; "
                f"{defaults.get('architecture', 'the backbone')} was published with mean {own[0]} and std {own[1]}. "
                "Leave them out unless these weights were trained so."
            ),
            stacklevel=3,
        )
    return used
