"""Evaluate an engine: invert the features of images and look at the reconstructions through the backbone again."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from featinv_fast.checks import count
from featinv_fast.errors import ArgumentError, FeatInvError
from featinv_fast.evaluate.classifier import Classifier
from featinv_fast.evaluate.floor import Floor
from featinv_fast.evaluate.frechet import FeatureSpace, FrechetDistance
from featinv_fast.evaluate.inputs import Example, Inverter, batches
from featinv_fast.evaluate.kept_pictures import KeptPictures, fill
from featinv_fast.evaluate.measures import MEASURES, Measure, Seen
from featinv_fast.evaluate.report import Item, Kind, Picture, Report
from featinv_fast.evaluate.rows import ORIGINALS, make_rows
from featinv_fast.evaluate.series import Outcome, Series
from featinv_fast.evaluate.viewing import Viewer
from featinv_fast.features import items_at
from featinv_fast.samplers import Setting
from featinv_kernels import to_uint8
from featinv_kernels.torch_state import neutral_torch_state


class EvaluationInterrupted(KeyboardInterrupt):
    """Ctrl-C inside `evaluate`. `report` covers what was done by then; None where that was nothing."""

    command_message = "interrupted"  # nobody can look into `.report` there

    def __init__(self, report: Report | None) -> None:
        self.report = report
        super().__init__("interrupted: what was measured is in `.report`" if report else "interrupted")


@neutral_torch_state()
def evaluate(
    runtime: Inverter,
    backbone: Classifier,
    images: Iterable[Example | Image.Image | np.ndarray],
    settings: Sequence[Setting] = (Setting(),),
    *,
    judge: Classifier | None = None,
    second_judge: Classifier | None = None,
    autoencoder: Callable[[Tensor], Tensor] | None = None,
    spaces: Sequence[FeatureSpace] = (),
    measures: Sequence[Measure] = MEASURES,
    seed: int = 0,
    samples: int = 1,
    batch_size: int = 32,
    pictures: int = 0,
    progress: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> Report:
    """Invert the features of `images` in each setting and measure what comes back (arXiv 2505.21032).

    The backbone sees each original resized and cropped by its own preprocessing, and each reconstruction likewise.
    Where images are compared as images (Frechet distances, autoencoder, pictures), the original is the backbone's crop
    resized to the engine's image size. Reconstruction j of image i is sampled with seed
    `seed + i * samples + j`, whatever its batch or setting.

    Args:
        runtime: the engine.
        backbone: computes the feature maps that the engine takes.
        images: read once, in batches. Of examples that have only a map, nothing is known that needs pixels or classes
            of the original.
        settings: samplers, steps and guidance to compare.
        judge: the backbone whose features and classes are compared, where it is not the engine's own: for engines of
            pooled features, or to hold engines of several stages to one measure.
        second_judge: a network beside it, that had no part in the engine: the figures `judge_cosine` and so on are its.
        autoencoder: encodes and decodes images [B, 3, s, s] in [-1, 1]; what it gives back is the ceiling.
        spaces: feature spaces of Frechet distances.
        measures: of single reconstructions; those that need a network of their own, such as `lpips`, come with it.
        seed: of the first image.
        samples: reconstructions of each image, to see what its features leave open (`SPREADS`).
        batch_size: images taken at once.
        pictures: how many images of each group to keep with their reconstructions.
        progress: show a count on stderr.
        clock: seconds, of which those before and after the engine's work are compared.

    Returns:
        Rows for each setting, for the autoencoder, and for unrelated images (each original compared with one of
        another class, see `floor`), which tells what a reconstruction without any information would score. Without
        originals of two classes that row is left out, and `notes` says why.

    Raises:
        ArgumentError: no images, no settings, or a setting that is out of range or there twice.
        ArgumentTypeError: something that is no image.
        FeatureShapeError, FeatureLayoutError: the backbone does not fit the engine.
        EvaluationInterrupted: Ctrl-C.
    """
    if not settings:
        raise ArgumentError(
            "there are no settings to evaluate",
            given=[],
            expected="at least one Setting",
            remedy="pass [Setting()] for the engine's own",
        )
    batch_size, samples = count("batch_size", batch_size), count("samples", samples)
    viewer = Viewer(backbone, judge or backbone, second_judge, int(runtime.info["image_size"]))
    run = _Evaluation(runtime, viewer, settings, autoencoder, spaces, measures, seed, samples, pictures, clock)
    try:
        with _progress_bar(shown=progress) as advance:
            for batch in batches(images, batch_size):
                with items_at([example.name for example in batch]):
                    run.add(batch)
                advance(len(batch))
    except KeyboardInterrupt as interruption:
        raise EvaluationInterrupted(run.report() if run.count else None) from interruption
    if not run.count:
        raise ArgumentError(
            "there are no images to evaluate on",
            given="an empty iterable",
            expected="at least one",
            remedy="pass images; an iterator that was used before gives none",
        )
    return run.report()


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Batch:
    """Originals with all that their reconstructions need.

    Attributes:
        examples: these, as they were given.
        seeds: of their reconstructions, `samples` of each.
        seen: what is seen in them.
        pictures: row -> the picture to fill, where it is wanted.
    """

    examples: Sequence[Example]
    seeds: Sequence[int]
    seen: Seen
    pictures: Mapping[int, Picture]


class _Evaluation:
    """The state of one evaluation."""

    def __init__(
        self,
        runtime: Inverter,
        viewer: Viewer,
        settings: Sequence[Setting],
        autoencoder: Callable[[Tensor], Tensor] | None,
        spaces: Sequence[FeatureSpace],
        measures: Sequence[Measure],
        seed: int,
        samples: int,
        pictures: int,
        clock: Callable[[], float],
    ) -> None:
        self.count = 0  # originals that were evaluated in every setting
        self._runtime = runtime
        self._viewer = viewer
        self._autoencoder = autoencoder
        self._distances = [FrechetDistance(space) for space in spaces]
        self._seed = seed
        self._samples = samples
        self._kept = KeptPictures(pictures)
        self._clock = clock
        self._settings = [(setting, Series(Kind.ENGINE, measures)) for setting in settings]
        self._ceiling = Series(Kind.AUTOENCODER, measures)
        self._floor = Floor(seed, measures)
        self._items: list[Item] = []

    def add(self, examples: Sequence[Example]) -> None:
        """Evaluate one batch."""
        originals = self._viewer.originals(examples)
        first = self._seed + self.count * self._samples
        batch = _Batch(
            examples=examples,
            seeds=range(first, first + len(examples) * self._samples),
            seen=originals.seen,
            pictures=self._kept.begin(examples, originals.crops),
        )
        images = originals.seen.images
        if self._autoencoder is not None and images is not None:
            pixels = images.permute(0, 3, 1, 2).float() / 127.5 - 1.0  # [B, 3, s, s]
            self._compare(self._ceiling, batch, to_uint8(self._autoencoder(pixels)).cpu(), errors={})
        for setting, series in self._settings:
            started = self._clock()
            inversion = self._runtime.invert(
                originals.features,
                steps=setting.steps,
                sampler=setting.sampler,
                guidance_scale=setting.guidance_scale,
                seed=batch.seeds,
                samples=self._samples,
                layout=originals.layout,
                errors="return",
            )
            series.seconds.append((self._clock() - started) / len(batch.seeds))
            series.flags = inversion.flags
            if self.count == 0:
                self._refuse_twins()
            self._compare(series, batch, torch.from_numpy(inversion.images), inversion.errors)
        if images is not None:
            for distance in self._distances:
                distance.update(ORIGINALS, images)
        self._floor.add(examples, originals.seen)
        self.count += len(examples)

    def report(self) -> Report:
        """What was measured so far."""
        floor, note = self._floor.compare()
        series = [*(series for _, series in self._settings), self._ceiling, floor]
        rows = make_rows(
            [one for one in series if one.groups],
            self._distances,
            engine=str(self._runtime.info["name"]),
            backbone=self._viewer.backbone.spec,
            judge=self._viewer.judge.spec,
            second_judge=None if self._viewer.second is None else self._viewer.second.spec,
            seed=self._seed,
            samples=self._samples,
        )
        return Report(
            rows=rows, items=tuple(self._items), pictures=tuple(self._kept.pictures), notes={Kind.UNRELATED: note}
        )

    def _compare(self, series: Series, batch: _Batch, images: Tensor, errors: Mapping[int, FeatInvError]) -> None:
        """Judge the reconstructions of a batch, uint8 [B, s, s, 3], as many of each original; `errors` are of rows."""
        label, examples = series.label, batch.examples
        samples = len(images) // len(examples)
        good = [row for row in range(len(images)) if row not in errors]
        outcomes: dict[int, Outcome] = {}
        if good:
            of = [row // samples for row in good]
            groups, numbers = [examples[one].group for one in of], [self.count + one for one in of]
            seen = self._viewer.reconstructions(images[good])
            outcomes = dict(zip(good, series.add(groups, numbers, batch.seen[of], seen), strict=True))
            for distance in self._distances:
                distance.update(label, images[good])
        for row in range(len(images)):
            example, outcome = examples[row // samples], outcomes.get(row, Outcome())
            if row in errors:
                series.groups[example.group].failed += 1
            self._items.append(
                Item(
                    label=label,
                    name=example.name,
                    group=example.group,
                    seed=batch.seeds[row // samples * self._samples + row % samples],
                    cosine=outcome.cosine,
                    place=outcome.place,
                    error=str(errors[row]) if row in errors else None,
                    figures=outcome.figures,
                    sample=row % samples,
                )
            )
        fill(batch.pictures, label, samples, images, outcomes)

    def _refuse_twins(self) -> None:
        labels = Counter(series.label for _, series in self._settings if series.flags is not None)
        twins = [label for label, times in labels.items() if times > 1]
        if twins:
            raise ArgumentError(
                "two settings turned out to be the same run", given=twins, remedy="leave one of them out"
            )


@contextlib.contextmanager
def _progress_bar(*, shown: bool) -> Iterator[Callable[[int], None]]:
    """A function that advances a count of images on stderr."""
    from tqdm import tqdm

    with tqdm(desc="evaluating", unit="image", disable=not shown) as bar:

        def advance(images: int) -> None:
            bar.update(images)

        yield advance
