"""Measures of reconstructions: each is a file here and a line below."""

from featinv_fast.evaluate.measures.base import Measure, Seen, by_judge
from featinv_fast.evaluate.measures.class_match import ACCURACIES, TOP1, TOP5
from featinv_fast.evaluate.measures.cosine import COSINE
from featinv_fast.evaluate.measures.feature_distance import FEATURE_DISTANCE
from featinv_fast.evaluate.measures.lpips import LPIPS, lpips
from featinv_fast.evaluate.measures.pixels import PSNR
from featinv_fast.evaluate.measures.probabilities import KL_DIVERGENCE, TOTAL_VARIATION
from featinv_fast.evaluate.measures.spread import FEATURE_SPREAD, PAIRWISE_SSIM, PIXEL_SPREAD
from featinv_fast.evaluate.measures.ssim import SSIM

_SEEN: tuple[Measure, ...] = (COSINE, TOP1, TOP5, *ACCURACIES, FEATURE_DISTANCE, KL_DIVERGENCE, TOTAL_VARIATION)
MEASURES: tuple[Measure, ...] = (*_SEEN, PSNR, SSIM, LPIPS, *map(by_judge, _SEEN))
# Of several images of one map.
SPREADS: tuple[Measure, ...] = (PIXEL_SPREAD, FEATURE_SPREAD, PAIRWISE_SSIM, by_judge(FEATURE_SPREAD))

__all__ = ["MEASURES", "SPREADS", "Measure", "Seen", "lpips"]
