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
from featinv_fast.evaluate.classifier import Classifier, comparable_maps
from featinv_fast.evaluate.floor import Floor
from featinv_fast.evaluate.frechet import FeatureSpace, FrechetDistance
from featinv_fast.evaluate.inputs import Example, Inverter, batches
from featinv_fast.evaluate.measures import Seen
from featinv_fast.evaluate.report import Item, Kind, Picture, Report
from featinv_fast.evaluate.rows import ORIGINALS, make_rows
from featinv_fast.evaluate.series import Outcome, Series
from featinv_fast.features import center_crop, items_at
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
    autoencoder: Callable[[Tensor], Tensor] | None = None,
    spaces: Sequence[FeatureSpace] = (),
    seed: int = 0,
    batch_size: int = 32,
    pictures: int = 0,
    progress: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> Report:
    """Invert the features of `images` in each setting and measure what comes back (arXiv 2505.21032).

    The backbone sees each original resized and cropped by its own preprocessing, and each reconstruction likewise.
    Where images are compared as images (Frechet distances, autoencoder, pictures), the original is the backbone's crop
    resized to the engine's image size. Image i is sampled with seed `seed + i`, whatever its batch or setting.

    Args:
        runtime: the engine.
        backbone: computes the feature maps that the engine takes.
        images: read once, in batches.
        settings: samplers, steps and guidance to compare.
        judge: the backbone whose features and classes are compared, where it is not the engine's own: for engines of
            pooled features, or to hold engines of several stages to one measure.
        autoencoder: encodes and decodes images [B, 3, s, s] in [-1, 1]; what it gives back is the ceiling.
        spaces: feature spaces of Frechet distances.
        seed: of the first image.
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
    batch_size = count("batch_size", batch_size)
    run = _Evaluation(runtime, backbone, judge or backbone, settings, autoencoder, spaces, seed, pictures, clock)
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


@dataclasses.dataclass(frozen=True)
class _Originals:
    """A batch of originals with all that reconstructions are compared with.

    Attributes:
        examples: these, as they were given.
        seeds: of their reconstructions.
        features: what the engine is given, in the backbone's layout.
        seen: the originals, as large as the engine's images.
        pictures: row -> the picture to fill, where it is wanted.
    """

    examples: Sequence[Example]
    seeds: Sequence[int]
    features: Tensor
    seen: Seen
    pictures: Mapping[int, Picture]


class _Evaluation:
    """The state of one evaluation."""

    def __init__(
        self,
        runtime: Inverter,
        backbone: Classifier,
        judge: Classifier,
        settings: Sequence[Setting],
        autoencoder: Callable[[Tensor], Tensor] | None,
        spaces: Sequence[FeatureSpace],
        seed: int,
        pictures: int,
        clock: Callable[[], float],
    ) -> None:
        self.count = 0  # originals that were evaluated in every setting
        self._runtime = runtime
        self._backbone = backbone
        self._judge = judge
        self._image_size = int(runtime.info["image_size"])
        self._autoencoder = autoencoder
        self._distances = [FrechetDistance(space) for space in spaces]
        self._seed = seed
        self._pictures_of_a_group = pictures
        self._clock = clock
        self._settings = [(setting, Series(Kind.ENGINE)) for setting in settings]
        self._ceiling = Series(Kind.AUTOENCODER)
        self._floor = Floor(seed)
        self._items: list[Item] = []
        self._pictures: list[Picture] = []

    def add(self, examples: Sequence[Example]) -> None:
        """Evaluate one batch."""
        originals = self._look_at(examples)
        if self._autoencoder is not None:
            pixels = originals.seen.images.permute(0, 3, 1, 2).float() / 127.5 - 1.0  # [B, 3, s, s]
            self._compare(self._ceiling, originals, to_uint8(self._autoencoder(pixels)).cpu(), errors={})
        for setting, series in self._settings:
            started = self._clock()
            inversion = self._runtime.invert(
                originals.features,
                steps=setting.steps,
                sampler=setting.sampler,
                guidance_scale=setting.guidance_scale,
                seed=originals.seeds,
                layout=self._backbone.spec.layout,
                errors="return",
            )
            series.seconds.append((self._clock() - started) / len(examples))
            series.flags = inversion.flags
            if self.count == 0:
                self._refuse_twins()
            self._compare(series, originals, torch.from_numpy(inversion.images), inversion.errors)
        for distance in self._distances:
            distance.update(ORIGINALS, originals.seen.images)
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
            backbone=self._backbone.spec,
            judge=self._judge.spec,
            seed=self._seed,
        )
        return Report(rows=rows, items=tuple(self._items), pictures=tuple(self._pictures), notes={Kind.UNRELATED: note})

    def _look_at(self, examples: Sequence[Example]) -> _Originals:
        images = [example.image for example in examples if isinstance(example.image, Image.Image)]
        features, logits = self._backbone.features_and_logits(self._backbone.preprocess(images))
        size = (self._image_size, self._image_size)
        crops = [
            center_crop(image, self._backbone.input_size).resize(size, Image.Resampling.BILINEAR) for image in images
        ]
        pixels = torch.from_numpy(np.stack([np.asarray(crop) for crop in crops]))
        if self._judge is self._backbone:
            seen = Seen(images=pixels, maps=comparable_maps(features, self._backbone.spec), logits=logits)
        else:
            seen = self._judged(images, pixels)
        first = self._seed + self.count
        return _Originals(
            examples=examples,
            seeds=range(first, first + len(images)),
            features=features,
            seen=seen,
            pictures=self._wanted_pictures(examples, crops),
        )

    def _judged(self, images: Sequence[Image.Image], pixels: Tensor) -> Seen:
        """What the judge sees in images, of which `pixels` [B, s, s, 3] are compared as such."""
        features, logits = self._judge.features_and_logits(self._judge.preprocess(images))
        return Seen(images=pixels, maps=comparable_maps(features, self._judge.spec), logits=logits)

    def _wanted_pictures(self, examples: Sequence[Example], crops: Sequence[Image.Image]) -> dict[int, Picture]:
        kept = Counter(picture.group for picture in self._pictures)
        wanted = {}
        for row, (example, crop) in enumerate(zip(examples, crops, strict=True)):
            if kept[example.group] < self._pictures_of_a_group:
                kept[example.group] += 1
                wanted[row] = Picture(name=example.name, group=example.group, original=crop, reconstructions={})
        self._pictures += wanted.values()
        return wanted

    def _compare(
        self, series: Series, originals: _Originals, images: Tensor, errors: Mapping[int, FeatInvError]
    ) -> None:
        """Judge the reconstructions of a batch, uint8 [B, s, s, 3]; rows in `errors` hold none."""
        label, examples = series.label, originals.examples
        good = [row for row in range(len(examples)) if row not in errors]
        reconstructions = {row: Image.fromarray(images[row].numpy()) for row in good}
        outcomes: dict[int, Outcome] = {}
        if good:
            groups = [examples[row].group for row in good]
            seen = self._judged(list(reconstructions.values()), images[good])
            numbers = [self.count + row for row in good]
            outcomes = dict(zip(good, series.add(groups, numbers, originals.seen[good], seen), strict=True))
            for distance in self._distances:
                distance.update(label, images[good])
        for row in errors:
            series.groups[examples[row].group].failed += 1
        for row, example in enumerate(examples):
            outcome = outcomes.get(row, Outcome())
            error = str(errors[row]) if row in errors else None
            self._items.append(
                Item(
                    label=label,
                    name=example.name,
                    group=example.group,
                    seed=originals.seeds[row],
                    cosine=outcome.cosine,
                    place=outcome.place,
                    error=error,
                    figures=outcome.figures,
                )
            )
            if row in originals.pictures:
                originals.pictures[row].reconstructions[label] = (reconstructions.get(row), outcome.cosine)

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
