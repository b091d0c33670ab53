"""What the engines are worth on held-out scenes: tables of `evaluate.Row`, a plot and a page of pictures."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from safetensors import safe_open

from featinv_export.demo_build.options import PICTURES, PLOT, BuildOptions
from featinv_export.weights import weight_index
from featinv_fast import demo
from featinv_fast.config import to_dict
from featinv_fast.demo import builtin
from featinv_fast.demo.scene_judge import Judge
from featinv_fast.evaluate import (
    WORLD_DISTANCE,
    Classifier,
    Example,
    Kind,
    Picture,
    Pooled,
    PooledFeatures,
    Report,
    Row,
    Setting,
    autoencoder_of,
    evaluate,
    picture_page,
    quality_plot,
)
from featinv_fast.features import Backbone
from featinv_fast.rewrites.upsample_products import is_kernel
from featinv_fast.runtime import Inversion, Runtime
from featinv_fast.train.place import RECIPE_NOTE

# How each engine is sampled.
SAMPLERS = {
    "teacher": ("ddim:50", "ddim:20", "ddim:10", "ddim:5", "dpm++2m:20", "dpm++2m:10", "dpm++2m:5"),
    "consistency": ("lcm:1", "lcm:2", "lcm:4", "lcm:8"),
    "trajectory": ("ddim:4",),
}
# What the built-in engines do unless told otherwise: sampler and steps.
TEACHER = ("ddim", 50)
STUDENT = {"consistency": ("lcm", 4), "trajectory": ("ddim", 4)}
NATURAL = str(demo.Style.NATURAL)
BATCH = 32
# Scenes that each engine inverts once more as it does by default: few enough for a test to repeat.
FIRST = 64
PICTURED = 8
# The parts of a model that an engine stores.
PARTS = ("condition_encoder", "denoiser.controlnet", "denoiser.unet", "decoder")


def measure(options: BuildOptions) -> None:
    """Measure everything and write the figures, the plot and the pictures to `options.measured`."""
    bench = _Bench(options)
    samplers = {engine: bench.samplers(engine) for engine in ("teacher", options.student)}
    teacher = samplers["teacher"]
    ceiling = teacher.row("autoencoder")
    tables = {
        "samplers": [
            *teacher.rows,
            *(_with_share(row, ceiling) for row in samplers[options.student].rows if row.kind is Kind.ENGINE),
        ],
        "baselines": [find(teacher.rows, TEACHER), bench.pooled()],
        "stages": [find(teacher.rows, TEACHER), ceiling, *bench.stages()],
        "stranger": bench.strangers_view(samplers),
        "robustness": bench.robustness(),
        "first": [bench.first(engine) for engine in ("teacher", options.student)],
    }
    results: dict[str, Any] = {
        "student": options.student,
        "scenes": options.scenes,
        "parameters": _parameters(options),
        "accuracy": bench.accuracy(),
        "strangers_accuracy": bench.right(bench.stranger, bench.scenes.images),
        "judge": judge_figures(bench.stranger, bench.scenes),
        "recipes": {name: _recipe(name, options) for name in options.recipes},
        **{name: [to_dict(row) for row in rows] for name, rows in tables.items()},
    }
    options.measured.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1, allow_nan=False) + "\n"
    (options.measured / builtin.RESULTS).write_text(text, encoding="utf-8")
    quality_plot(tables["samplers"]).save(options.measured / PLOT, optimize=True)
    page = _pictures(teacher, samplers[options.student], options.student)
    page.save(options.measured / PICTURES, quality=90)


def judge_figures(judge: Judge, scenes: demo.LabelledScenes) -> dict[str, Any]:
    """Which network it is, and how often it names the class of scenes and each concept of what is there."""
    right: dict[str, list[np.ndarray]] = {"class": []}
    for start in range(0, len(scenes), BATCH):
        rows = slice(start, start + BATCH)
        pixels = judge.preprocess([Image.fromarray(image) for image in scenes.images[rows]])
        _, logits = judge.features_and_logits(pixels)
        assert logits is not None, "it has classes"
        right["class"].append(logits.argmax(dim=1).numpy() == scenes.labels[rows])
        for name, answers in judge.concepts(pixels).items():
            codes = scenes.concepts[name][rows].reshape(len(pixels), -1)  # [B, slots]
            right.setdefault(name, []).append((answers.argmax(dim=2).numpy() == codes)[codes != demo.ABSENT])
    accuracy = {name: float(np.concatenate(parts).mean()) for name, parts in right.items()}
    return {"backbone": judge.spec.backbone, "weights_sha256": judge.weights_sha256, "accuracy": accuracy}


class _Bench:
    """The engines, the backbone as it is shipped, and the scenes."""

    def __init__(self, options: BuildOptions) -> None:
        self.options = options
        self.final = self.backbone("final")
        # Another architecture with other weights, and no loss of any model that is measured saw it.
        self.stranger = Judge(builtin.judge_spec(), options.engines / builtin.JUDGE)
        self.scenes = demo.load_scenes(options.scenes)
        self.autoencoder = autoencoder_of(options.checkpoint("controlnet"), batch_size=BATCH)
        self._on_scenes: dict[str, _Remembering] = {}

    def backbone(self, layer: str) -> Backbone:
        # The engine that is installed names the weights of its own backbone.
        spec = dataclasses.replace(builtin.backbone_spec(layer), weights_sha256=None)
        return Backbone(spec, weights=self.options.engines / builtin.BACKBONE)

    def runtime(self, engine: str) -> Runtime:
        # One backend for all, so that their times can be compared.
        return Runtime(self.options.engines / engine, backend="torch", device="cpu")

    def on_scenes(self, engine: str) -> _Remembering:
        """An engine that inverts nothing but the test scenes, by features of one kind."""
        if engine not in self._on_scenes:
            self._on_scenes[engine] = _Remembering(self.runtime(engine))
        return self._on_scenes[engine]

    def samplers(self, engine: str) -> Report:
        """An engine in all its settings; the teacher's report also has the ceiling and the floor."""
        return evaluate(
            self.on_scenes(engine),
            self.final,
            self.examples(),
            [Setting.parse(text) for text in SAMPLERS[engine]],
            autoencoder=self.autoencoder if engine == "teacher" else None,
            spaces=[PooledFeatures(self.final, name=WORLD_DISTANCE)],
            batch_size=BATCH,
            pictures=PICTURED,
            progress=self.options.progress,
        )

    def first(self, engine: str) -> Row:
        """An engine's own sampler and steps on the first scenes alone."""
        examples = itertools.islice(self.examples(), FIRST)
        return evaluate(self.runtime(engine), self.final, examples, [Setting()], batch_size=BATCH).rows[0]

    def pooled(self) -> Row:
        """The baseline that sees one vector for the whole image, judged by the final map as the spatial one is."""
        return find(self.judged("pooled", TEACHER, Pooled(self.final), self.final).rows, TEACHER)

    def stages(self) -> list[Row]:
        """An engine of an earlier stage, judged by the final map, and then by the features that it inverts."""
        stage = self.backbone("1")
        by_final = find(self.judged("stage1", TEACHER, stage, self.final).rows, TEACHER)
        by_own = self.judged("stage1", TEACHER, stage, stage)
        return [by_final, _as_fast(find(by_own.rows, TEACHER), by_final), by_own.row("autoencoder")]

    def strangers_view(self, samplers: Mapping[str, Report]) -> list[Row]:
        """The ceiling, and what `samplers` has of each engine as it is used, by a network that saw none of it made."""
        runs = {"teacher": TEACHER, self.options.student: STUDENT[self.options.student]}
        reports = {engine: self.judged(engine, run, self.final, self.stranger) for engine, run in runs.items()}
        rows = [
            _as_fast(find(reports[engine].rows, run), find(samplers[engine].rows, run)) for engine, run in runs.items()
        ]
        return [reports["teacher"].row("autoencoder"), *rows]

    def judged(self, engine: str, run: tuple[str, int], backbone: Classifier, judge: Classifier) -> Report:
        """One sampler and steps of an engine, with the ceiling of the judge's features."""
        sampler, steps = run
        return evaluate(
            self.on_scenes(engine),
            backbone,
            self.examples(),
            [Setting(sampler=sampler, steps=steps)],
            judge=judge,
            autoencoder=self.autoencoder,
            spaces=[PooledFeatures(self.final, name=WORLD_DISTANCE)],
            batch_size=BATCH,
            progress=self.options.progress,
        )

    def robustness(self) -> list[Row]:
        """The student on what no training has seen, a row for each variant of the scenes.

        A reconstruction is compared with the styled or corrupted image, as that is what its features came from.
        """
        examples = (Example(image=image, group=name) for name, images in self.variants() for image in images)
        runtime = self.runtime(self.options.student)
        report = evaluate(runtime, self.final, examples, batch_size=BATCH, progress=self.options.progress)
        return [row for row in report.rows if row.kind is Kind.ENGINE and row.group is not None]

    def accuracy(self) -> dict[str, float]:
        """How often the backbone names the class of a scene, for each variant."""
        return {name: self.right(self.final, images) for name, images in self.variants()}

    def right(self, classifier: Classifier, images: np.ndarray) -> float:
        """How often a classifier names the class of the test scenes, of which `images` [B, 64, 64, 3] are a variant."""
        found = []
        for start in range(0, len(images), BATCH):
            pixels = classifier.preprocess([Image.fromarray(image) for image in images[start : start + BATCH]])
            _, logits = classifier.features_and_logits(pixels)
            assert logits is not None, "the demo's backbones have classes"
            found.append(logits.argmax(dim=1).numpy())
        return float(np.mean(np.concatenate(found) == self.scenes.labels))

    def examples(self) -> Iterator[Example]:
        """The test scenes under the names of their classes."""
        return (
            Example(image=image, name=demo.CLASS_NAMES[label], label=demo.CLASS_NAMES[label])
            for image, label in zip(self.scenes.images, self.scenes.labels, strict=True)
        )

    def variants(self) -> Iterator[tuple[str, np.ndarray]]:
        """The test scenes as they are, in other styles, and corrupted: a name and images uint8 [B, 64, 64, 3]."""
        yield NATURAL, self.scenes.images
        for style in (demo.Style.LINE_DRAWING, demo.Style.NEGATIVE):
            yield str(style), demo.load_scenes(self.options.scenes, style=style).images
        for corruption in demo.Corruption:
            for severity in demo.SEVERITIES:
                yield f"{corruption}/{severity}", demo.corrupt(self.scenes.images, corruption, severity)


class _Remembering:
    """An engine that inverts the same rows in the same way only once, for a second judge."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._done: dict[tuple[Any, ...], Inversion] = {}

    @property
    def info(self) -> dict[str, Any]:
        return self._runtime.info

    def invert(self, features: Any, *, seed: Sequence[int], **options: Any) -> Inversion:
        """See `Runtime.invert`. A row's seed stands for its features here."""
        rows = tuple(seed)
        way = (rows, *sorted(options.items()))
        if way not in self._done:
            self._done[way] = self._runtime.invert(features, seed=rows, **options)
        return self._done[way]


def find(rows: Sequence[Row], run: tuple[str, int], engine: str = "") -> Row:
    """The row over all scenes of a sampler and steps, of an engine whose name holds `engine`."""
    return next(row for row in rows if (row.sampler, row.steps) == run and engine in row.engine and row.group is None)


def _with_share(row: Row, ceiling: Row) -> Row:
    """A row with its share of the ceiling, which was measured on the same scenes by the same judge."""
    assert row.cosine is not None
    assert ceiling.cosine is not None
    return dataclasses.replace(row, share_of_ceiling=row.cosine.mean / ceiling.cosine.mean)


def _as_fast(row: Row, first: Row) -> Row:
    """A row of images that were there already, with the time that it took to make them for `first`."""
    return dataclasses.replace(row, seconds_per_image=first.seconds_per_image)


def _pictures(teacher: Report, student: Report, name: str) -> Image.Image:
    """Originals, the teacher's reconstructions and the student's, with the feature cosine under each."""
    labels = find(teacher.rows, TEACHER).label, find(student.rows, STUDENT[name]).label
    pictures = []
    for both in zip(teacher.pictures, student.pictures, strict=True):
        shown = {label: picture.reconstructions[label] for label, picture in zip(labels, both, strict=True)}
        pictures.append(Picture(name=both[0].name, group="", original=both[0].original, reconstructions=shown))
    return picture_page(pictures, across=2)


def _recipe(name: str, options: BuildOptions) -> dict[str, Any]:
    """The recipe that made a checkpoint, which carries it."""
    with safe_open(options.checkpoint(name), framework="pt") as file:
        return dict(json.loads(file.metadata()[RECIPE_NOTE]))


def _parameters(options: BuildOptions) -> dict[str, int]:
    """How many numbers the parts of an engine hold, each once."""
    index = {name: t for name, t in weight_index(options.engines / "teacher").items() if not is_kernel(name)}
    return {
        part: sum(math.prod(tensor.shape) for name, tensor in index.items() if name.startswith(f"{part}."))
        for part in PARTS
    }
