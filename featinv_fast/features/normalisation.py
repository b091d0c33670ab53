"""The constants by which a backbone's images are normalised: the model's own, unless others are stated."""

from __future__ import annotations

import warnings

from featinv_fast.errors import ArgumentError

Constants = tuple[float, float, float]


class BackboneNormalisationWarning(UserWarning):
    """Images are normalised with other constants than those that the backbone was published with."""


def constants(
    name: str,
    own: tuple[Constants | None, Constants | None],
    mean: Constants | None,
    std: Constants | None,
) -> tuple[Constants, Constants]:
    """Mean and standard deviation of RGB in [0, 1] for a backbone; a warning where they are not its own.

    Args:
        name: of the backbone.
        own: mean and standard deviation that it was published with; None where nobody says.
        mean: what is stated; None is the model's own.
        std: what is stated; None is the model's own.

    Raises:
        ArgumentError: nobody says them.
    """
    used_mean, used_std = mean or own[0], std or own[1]
    if used_mean is None or used_std is None:
        raise ArgumentError(
            "how images are normalised for this backbone is not known",
            given=f"{name}, which does not say its mean and standard deviation",
            expected="attributes `mean` and `std` of a network of your own, preprocessor_config.json of one for "
            "transformers, or both stated",
            remedy="state FeatureSpec.mean and .std, or add them to the network",
            command_remedy="add them to the network; a recipe may state backbone.mean and backbone.std",
        )
    if (used_mean, used_std) != (own[0] or used_mean, own[1] or used_std):
        warnings.warn(
            BackboneNormalisationWarning(
                f"images are normalised with mean {used_mean} and std {used_std}, as is stated; "
                f"{name} was published with mean {own[0]} and std {own[1]}. "
                "Leave them out unless these weights were trained so."
            ),
            stacklevel=3,
        )
    return used_mean, used_std
