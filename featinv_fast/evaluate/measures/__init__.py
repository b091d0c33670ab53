"""Measures of reconstructions: each is a file here and a line below."""

from featinv_fast.evaluate.measures.base import Measure, Seen
from featinv_fast.evaluate.measures.class_match import ACCURACIES, TOP1, TOP5
from featinv_fast.evaluate.measures.cosine import COSINE
from featinv_fast.evaluate.measures.feature_distance import FEATURE_DISTANCE
from featinv_fast.evaluate.measures.pixels import PSNR
from featinv_fast.evaluate.measures.probabilities import KL_DIVERGENCE, TOTAL_VARIATION
from featinv_fast.evaluate.measures.spread import FEATURE_SPREAD, PAIRWISE_SSIM, PIXEL_SPREAD
from featinv_fast.evaluate.measures.ssim import SSIM

MEASURES: tuple[Measure, ...] = (
    COSINE,
    TOP1,
    TOP5,
    *ACCURACIES,
    PSNR,
    SSIM,
    FEATURE_DISTANCE,
    KL_DIVERGENCE,
    TOTAL_VARIATION,
)
# Of several images of one map.
SPREADS: tuple[Measure, ...] = (PIXEL_SPREAD, FEATURE_SPREAD, PAIRWISE_SSIM)

__all__ = ["MEASURES", "SPREADS", "Measure", "Seen"]
