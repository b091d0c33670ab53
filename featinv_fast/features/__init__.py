"""Feature maps: what users hand in, files that hold them, and the backbones that compute them."""

from featinv_fast.config import AS_STORED, ImageReading
from featinv_fast.features.backbones import Backbone
from featinv_fast.features.checks import FeatureStatisticsWarning, check_statistics, non_finite_items
from featinv_fast.features.files import load_features
from featinv_fast.features.folders import class_folders, list_images
from featinv_fast.features.images import center_crop, read_image, to_rgb
from featinv_fast.features.known import KNOWN_BACKBONES, known_spec, official
from featinv_fast.features.layouts import normalise
from featinv_fast.features.normalisation import BackboneNormalisationWarning
from featinv_fast.features.opening import asked_spec, completed, named_spec, open_backbone, require_same_features
from featinv_fast.features.places import items_at, place_of
from featinv_fast.features.stored import StoredFeatures
from featinv_fast.features.weights import weights_sha256

__all__ = [
    "AS_STORED",
    "KNOWN_BACKBONES",
    "Backbone",
    "BackboneNormalisationWarning",
    "FeatureStatisticsWarning",
    "ImageReading",
    "StoredFeatures",
    "asked_spec",
    "center_crop",
    "check_statistics",
    "class_folders",
    "completed",
    "items_at",
    "known_spec",
    "list_images",
    "load_features",
    "named_spec",
    "non_finite_items",
    "normalise",
    "official",
    "open_backbone",
    "place_of",
    "read_image",
    "require_same_features",
    "to_rgb",
    "weights_sha256",
]
