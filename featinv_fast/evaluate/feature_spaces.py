"""Feature spaces for the Frechet distance: Inception's, whose distance is FID, and a backbone's own."""

from __future__ import annotations

import hashlib
import importlib
import io
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from featinv_fast.errors import CheckpointError, CheckpointMismatchError, MissingPackageError
from featinv_fast.evaluate.classifier import Classifier, layer_maps

# The TensorFlow Inception network of 2015-12-05, converted to torch once and published by pytorch-fid as
# pt_inception-2015-12-05-6726825d.pth and by torch-fidelity as weights-inception-2015-12-05-6726825d.pth.
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"

# The distance of the small world that the package ships. Its backbone is not Inception: this is not FID.
WORLD_DISTANCE = "featinv_world_distance"


class InceptionFeatures:
    """The 2048 pooled features of the Inception network that FID is defined by (arXiv 1706.08500).

    The network and its TensorFlow-like resizing come from torch-fidelity, whose FID agrees with the original code.

    Args:
        weights: a local copy of pt_inception-2015-12-05-6726825d.pth (torch-fidelity publishes the same bytes as
            weights-inception-2015-12-05-6726825d.pth). Nothing is downloaded.
        device: where the network runs.

    Raises:
        MissingPackageError: torch-fidelity is not installed.
        CheckpointError: there is no such file.
        CheckpointMismatchError: it is another file; distances from other weights are not FID.
    """

    name = "fid"
    dimension = 2048

    def __init__(self, weights: str | Path, *, device: str | torch.device = "cpu") -> None:
        path = Path(weights)
        extractor = _inception_class()
        if not path.is_file():
            raise CheckpointError(
                "there is no such file of Inception weights",
                given=path,
                expected="pt_inception-2015-12-05-6726825d.pth",
                remedy="get it from the releases of mseitzer/pytorch-fid or toshas/torch-fidelity",
            )
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if digest != INCEPTION_SHA256:
            raise CheckpointMismatchError(
                "these are not the Inception weights that FID is defined by",
                given=f"{path} with SHA-256 {digest}",
                expected=f"pt_inception-2015-12-05-6726825d.pth with SHA-256 {INCEPTION_SHA256}",
                remedy="torchvision's Inception weights are others; get the file named here",
            )
        self.device = torch.device(device)
        # torch-fidelity unpickles whatever it is given: it gets the very bytes whose digest was checked.
        self._network = extractor("featinv-fid", ["2048"], feature_extractor_weights_path=io.BytesIO(content)).to(
            self.device
        )

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Images uint8 [B, H, W, 3] -> [B, 2048]."""
        (features,) = self._network(images.permute(0, 3, 1, 2).contiguous().to(self.device))
        return features


class PooledFeatures:
    """A backbone's features, averaged over locations. A distance in this space is not FID and must not be called so.

    Args:
        classifier: the backbone.
        name: of the distance; `WORLD_DISTANCE` for the small world's own backbone.
    """

    def __init__(self, classifier: Classifier, *, name: str) -> None:
        self.name = name
        self.dimension = classifier.spec.total_channels
        self._classifier = classifier

    def __call__(self, images: Tensor) -> Tensor:
        """Images uint8 [B, H, W, 3] -> [B, channels]."""
        pixels = self._classifier.preprocess([Image.fromarray(image) for image in images.cpu().numpy()])
        features, _ = self._classifier.features_and_logits(pixels)
        spec = self._classifier.spec
        return torch.cat([one.mean(dim=(2, 3)) for one in layer_maps(features, spec)], dim=1)


def _inception_class() -> Any:
    try:
        # By name: the package has no type information.
        return importlib.import_module("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    except ImportError as error:
        raise MissingPackageError(
            "FID needs torch-fidelity's Inception network",
            given=str(error),
            remedy="pip install 'featinv-fast[evaluate]', or evaluate without FID",
        ) from error
