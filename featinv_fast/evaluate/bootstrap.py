"""Confidence intervals of means by the percentile bootstrap (Efron 1979)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95
_DRAWN = 2**22  # numbers drawn at once


def interval(values: Sequence[float], *, seed: int) -> tuple[float, float]:
    """The 2.5 % and 97.5 % quantiles of the means of 2,000 resamples of `values`.

    Resamples are drawn with replacement, as large as `values`, by numpy's default generator from `seed`. With one value
    both ends are that value: one image tells nothing of the spread.
    """
    given = np.asarray(values, dtype=np.float64)
    random = np.random.default_rng(seed)
    at_once = max(1, _DRAWN // len(given))
    means = [
        given[random.integers(0, len(given), (min(at_once, RESAMPLES - start), len(given)))].mean(axis=1)
        for start in range(0, RESAMPLES, at_once)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
