"""From series of scores to the rows of a report."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import statistics
from collections.abc import Sequence
from typing import Any

from featinv_fast.config import FeatureSpec
from featinv_fast.evaluate.bootstrap import interval
from featinv_fast.evaluate.frechet import FrechetDistance
from featinv_fast.evaluate.report import Distance, Figure, Kind, Row
from featinv_fast.evaluate.series import Scores, Series

ORIGINALS = "originals"  # the set of images that Frechet distances are taken to
RAN = ("sampler", "steps", "guidance_scale", "backend", "device", "precision", "batch_size")
PACKAGES = (
    "featinv-fast",
    "torch",
    "timm",
    "torchvision",
    "transformers",
    "onnxruntime",
    "onnxruntime-gpu",
    "numpy",
    "pillow",
    "torch-fidelity",
)


def make_rows(
    series: Sequence[Series],
    distances: Sequence[FrechetDistance],
    *,
    engine: str,
    backbone: FeatureSpec,
    judge: FeatureSpec,
    second_judge: FeatureSpec | None,
    seed: int,
    samples: int,
) -> tuple[Row, ...]:
    """A row for each series over all images, then for each of its groups where images are grouped."""
    created = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    versions = _versions()
    ceilings = {group: scores for one in series if one.kind is Kind.AUTOENCODER for group, scores in _parts(one)}
    rows = []
    for one in series:
        ran: dict[str, Any] = {name: getattr(one.flags, name, None) for name in RAN}  # None where nothing ran
        measured = _measured(distances, one)
        for group, scores in _parts(one):
            summary = scores.cosine.summary() if len(scores.cosine) else None
            match = scores.match.summary()
            rows.append(
                Row(
                    label=one.label,
                    kind=one.kind,
                    engine=engine,
                    backbone=_named(backbone),
                    judge=_named(judge),
                    group=group,
                    n=len(scores.cosine),
                    failed=scores.failed,
                    seed=seed,
                    cosine=summary,
                    top1=match[1],
                    top5=match[5],
                    share_of_ceiling=_share(scores, ceilings.get(group)),
                    seconds_per_image=one.seconds_per_image,
                    **ran,
                    distances=measured if group is None else {},
                    figures=_figures(one, group, seed),
                    second_judge=None if second_judge is None else _named(second_judge),
                    samples=samples if one.kind is Kind.ENGINE else 1,
                    created=created,
                    versions=versions,
                )
            )
    return tuple(rows)


def _parts(series: Series) -> list[tuple[str | None, Scores]]:
    """All images, then each group; images of a single nameless group are not listed twice."""
    groups = [] if set(series.groups) <= {""} else sorted(series.groups.items())
    return [(None, series.total), *groups]


def _figures(series: Series, group: str | None, seed: int) -> dict[str, Figure]:
    """The means of all measures over originals; resamples draw originals, each with all of its reconstructions."""
    values: dict[str, dict[int, list[float]]] = {}
    for its_group, original, figures in series.figures:
        if group in (None, its_group):
            for name, value in figures.items():
                values.setdefault(name, {}).setdefault(original, []).append(value)
    found = {}
    for name, by_original in values.items():
        means = [statistics.fmean(by_original[original]) for original in sorted(by_original)]
        low, high = interval(means, seed=seed)
        found[name] = Figure(mean=statistics.fmean(means), low=low, high=high, originals=len(means))
    return found


def _share(scores: Scores, ceiling: Scores | None) -> float | None:
    if ceiling is None or not len(ceiling.cosine) or not len(scores.cosine):
        return None
    highest = ceiling.cosine.summary().mean
    return scores.cosine.summary().mean / highest if highest > 0 else None


def _measured(distances: Sequence[FrechetDistance], series: Series) -> dict[str, Distance]:
    """The distances of a series; none for the originals themselves, or with fewer than two images."""
    found = {}
    for distance in distances:
        originals, images = distance.moments(ORIGINALS), distance.moments(series.label)
        if min(originals.count, images.count) >= 2:
            found[distance.space.name] = Distance(
                value=distance.between(ORIGINALS, series.label),
                originals=originals.count,
                reconstructions=images.count,
                dimension=distance.space.dimension,
            )
    return found


def _named(spec: FeatureSpec) -> str:
    pooled = " (pooled)" if spec.layout == "pooled" else ""
    return f"{spec.backbone or 'unknown backbone'}, layer {spec.layer_names or 'unknown'}{pooled}"


def _versions() -> dict[str, str]:
    installed: dict[str, str] = {}
    for package in PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed
