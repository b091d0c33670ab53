"""Feature maps: what users hand in, files that hold them, and the backbones that compute them."""

from featinv_fast.features.backbones import KNOWN_BACKBONES, Backbone, center_crop, known_spec
from featinv_fast.features.checks import FeatureStatisticsWarning, check_statistics, non_finite_items
from featinv_fast.features.files import class_folders, list_images, load_features, read_image
from featinv_fast.features.layouts import normalise
from featinv_fast.features.weights import weights_sha256

__all__ = [
    "KNOWN_BACKBONES",
    "Backbone",
    "FeatureStatisticsWarning",
    "center_crop",
    "check_statistics",
    "class_folders",
    "known_spec",
    "list_images",
    "load_features",
    "non_finite_items",
    "normalise",
    "read_image",
    "weights_sha256",
]
