"""Perceptual distance by a network (LPIPS, arXiv 1801.03924), where its weights are present."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featinv_fast.checks import choice
from featinv_fast.errors import CheckpointError, CheckpointMismatchError, MissingPackageError
from featinv_fast.evaluate.measures.base import Measure, Seen, of_images

# What LPIPS calls a network -> torchvision's model and the name of its published weights.
_NETWORKS = {
    "alex": ("alexnet", "AlexNet_Weights"),
    "vgg": ("vgg16", "VGG16_Weights"),
    "squeeze": ("squeezenet1_1", "SqueezeNet1_1_Weights"),
}
NETWORKS = tuple(_NETWORKS)
# So many images at once: the first layers of VGG-16 take 32 MiB for each of 256 pixels.
_AT_ONCE = 8


def lpips(network: str, *, device: str | torch.device = "cpu") -> Measure:
    """LPIPS by a network, as torchmetrics computes it, of images in the engine's size.

    Args:
        network: "alex" (what papers report), "vgg" or "squeeze". Its ImageNet weights must lie in torch's cache, where
            torchvision looks for them; nothing is downloaded. The heads come with torchmetrics.
        device: where it runs.

    Raises:
        ArgumentError: another network.
        MissingPackageError: torchmetrics or torchvision is not installed.
        CheckpointError: the weights are not present.
        CheckpointMismatchError: the file under their name is another one.
    """
    choice("the network of LPIPS", network, NETWORKS)
    _require(weights_file(network), network)
    made: Any = _torchmetrics().LearnedPerceptualImagePatchSimilarity(net_type=network)
    made = made.net.to(device)

    @torch.no_grad()
    def distances(originals: Tensor, reconstructions: Tensor) -> Tensor:
        """Of pairs of images uint8 [B, H, W, 3]: [B]."""
        pairs = zip(torch.split(originals, _AT_ONCE), torch.split(reconstructions, _AT_ONCE), strict=True)
        parts = [made(_pixels(one, device), _pixels(other, device)).flatten() for one, other in pairs]
        return torch.cat(parts).cpu()

    return dataclasses.replace(LPIPS, compute=of_images(distances))


def weights_file(network: str) -> Path:
    """Where torchvision looks for a network's ImageNet weights.

    Raises:
        MissingPackageError: torchvision is not installed.
    """
    try:
        models = importlib.import_module("torchvision.models")
    except ImportError as error:
        raise _missing(error) from error
    url: str = getattr(models, _NETWORKS[network][1]).DEFAULT.url
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]


def _require(path: Path, network: str) -> None:
    """The file is there, and its SHA-256 begins as its name ends."""
    name = _NETWORKS[network][0]
    if not path.is_file():
        raise CheckpointError(
            f"the weights of LPIPS's network {network!r} are not present",
            given=f"there is no {path}",
            expected=f"the ImageNet weights of torchvision's {name}, which are not downloaded from here",
            remedy=f"where there is a connection, run torchvision.models.{name}(weights='DEFAULT') once, and copy the "
            "file that it stores; or compare by --judge, a second network",
        )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(stated := path.stem.rpartition("-")[2]):
        raise CheckpointMismatchError(
            "this file holds other weights than its name says",
            given=f"{path} with SHA-256 {digest}",
            expected=f"a SHA-256 that begins with {stated}",
            remedy="remove it, and get it again",
        )


def _pixels(images: Tensor, device: str | torch.device) -> Tensor:
    """uint8 [B, H, W, 3] -> [B, 3, H, W] in [-1, 1]."""
    return images.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def _torchmetrics() -> Any:
    try:
        return importlib.import_module("torchmetrics.image.lpip")
    except ImportError as error:
        raise _missing(error) from error


def _missing(error: ImportError) -> MissingPackageError:
    return MissingPackageError(
        "LPIPS needs torchmetrics and torchvision",
        given=str(error),
        remedy="pip install 'featinv-fast[evaluate]', or evaluate without LPIPS",
    )


def _unknown(originals: Seen, reconstructions: Seen) -> None:
    """Without a network there is no value."""
    del originals, reconstructions


LPIPS = Measure(name="lpips", title="LPIPS", form=".4f", compute=_unknown)
