"""The result of an evaluation: rows that stand alone, a record of each image, and pictures."""

from __future__ import annotations

import dataclasses
import enum
import json
import os
from pathlib import Path
from typing import Any

from PIL import Image

from featinv_fast.checks import file_errors, output_folder, require_input
from featinv_fast.config import from_dict, to_dict
from featinv_fast.errors import ConfigError, UnreadableFileError
from featinv_fast.evaluate.metrics import CosineSummary

FORMAT_VERSION = 1
REPORT = "report.json"


class Kind(enum.StrEnum):
    """What a row's reconstructions are."""

    ENGINE = "engine"
    AUTOENCODER = "autoencoder"  # the ceiling: originals encoded and decoded, without any inversion
    UNRELATED = "unrelated"  # the floor: each original compared with one of another class


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distance:
    """A Frechet distance, and how many images and dimensions it was estimated from."""

    value: float
    originals: int
    reconstructions: int
    dimension: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """The mean of a measure with its 95 % confidence interval (see `interval`).

    Attributes:
        mean: over originals, of each the mean over its reconstructions.
        low: end of the interval.
        high: the other end.
        originals: how many; resamples are drawn from them.
    """

    mean: float
    low: float
    high: float
    originals: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """The figures of one setting, over all images or one group of them. It needs no other row to be read.

    Attributes:
        label: short name of the setting.
        kind: what the reconstructions are.
        engine: name of the engine.
        backbone: that the engine's features come from, and its layer.
        judge: the backbone and layer whose features and classes are compared.
        group: label of the images, or None for all of them.
        n: reconstructions compared.
        failed: reconstructions that could not be inverted; they are in no figure.
        seed: of the first image.
        cosine: feature cosine; None without images.
        top1: share of images whose top class on the original is the reconstruction's too.
        top5: the same for the reconstruction's first five. None where the backbone has too few classes.
        share_of_ceiling: mean cosine by the autoencoder's, where there is one.
        seconds_per_image: median over batches.
        sampler, steps, guidance_scale, backend, device, precision, batch_size: what ran.
        distances: name -> Frechet distance between originals and reconstructions.
        created: UTC, ISO 8601.
        versions: package -> version.
        figures: name of a measure, see `MEASURES` and `SPREADS`, -> its mean; without those that nothing is known of.
        samples: reconstructions of each original.
        second_judge: the network and layer that the figures `judge_...` are by, where there is one.
    """

    label: str
    kind: Kind
    engine: str
    backbone: str
    judge: str
    group: str | None
    n: int
    failed: int
    seed: int
    cosine: CosineSummary | None
    top1: float | None
    top5: float | None
    share_of_ceiling: float | None
    seconds_per_image: float | None
    sampler: str | None
    steps: int | None
    guidance_scale: float | None
    backend: str | None
    device: str | None
    precision: str | None
    batch_size: int | None
    distances: dict[str, Distance]
    created: str
    versions: dict[str, str]
    figures: dict[str, Figure] = dataclasses.field(default_factory=dict)
    samples: int = 1
    second_judge: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
    """What became of one image in one setting and with one seed.

    Attributes:
        label: short name of the setting.
        name: of the image.
        group: of the image.
        seed: its seed.
        cosine: mean over locations; None for a failure.
        place: of the original's top class among the reconstruction's, 0 for a top-1 match.
        error: why the image could not be inverted.
        figures: name of a measure -> its value, see `MEASURES`. With each of several samples of an image, the spread of
            them all (`SPREADS`).
        sample: its number among the reconstructions of this image.
    """

    label: str
    name: str
    group: str
    seed: int
    cosine: float | None
    place: int | None
    error: str | None
    figures: dict[str, float] = dataclasses.field(default_factory=dict)
    sample: int = 0

    def to_dict(self) -> dict[str, Any]:
        """A flat table row as plain JSON types: each figure by its own name."""
        fields = to_dict(self)
        return fields | fields.pop("figures")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """An original, as large as the engine's images, and its reconstructions.

    Attributes:
        name: of the image.
        group: of the image.
        original: what the reconstructions are compared with; None where only its map is known.
        reconstructions: label of the setting -> image and cosine, both None for a failure. Of several samples the first
            ones, from the second with their number: "LCM-4 (2)".
        spreads: label of the setting -> the standard deviation of its samples (see `spread_map`), its mean in levels.
    """

    name: str
    group: str
    original: Image.Image | None
    reconstructions: dict[str, tuple[Image.Image | None, float | None]]
    spreads: dict[str, tuple[Image.Image, float]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What `evaluate` measured.

    Attributes:
        rows: for each setting, the autoencoder and unrelated images: all images first, then each group.
        items: for each image and setting.
        pictures: the first images of each group with their reconstructions.
        notes: what else is to be known of the rows of a kind: how the unrelated images were chosen, or why not.
    """

    rows: tuple[Row, ...]
    items: tuple[Item, ...]
    pictures: tuple[Picture, ...]
    notes: dict[Kind, str] = dataclasses.field(default_factory=dict)

    def row(self, label: str, group: str | None = None) -> Row:
        """The row of a setting, over all images or one group.

        Raises:
            KeyError: there is no such row.
        """
        for row in self.rows:
            if (row.label, row.group) == (label, group):
                return row
        raise KeyError(
            f"no row {label!r} of group {group!r}; there are {[(row.label, row.group) for row in self.rows]}"
        )

    def to_dict(self) -> dict[str, Any]:
        """The rows and notes as plain JSON types."""
        notes = {str(kind): note for kind, note in self.notes.items()}
        return {"format_version": FORMAT_VERSION, "rows": [to_dict(row) for row in self.rows], "notes": notes}

    @staticmethod
    def read_rows(path: str | os.PathLike[str]) -> tuple[Row, ...]:
        """The rows of a saved report.

        Args:
            path: `report.json`, or the folder that it is in.

        Raises:
            InputNotFoundError: there is none.
            UnreadableFileError: it is damaged, or none of ours.
        """
        file = Path(path) / REPORT if Path(path).is_dir() else Path(path)
        require_input(file, "file", expected=f"a {REPORT} that featinv eval wrote, or its folder")
        try:
            with file_errors(file):
                data = json.loads(file.read_text(encoding="utf-8"))
            if data["format_version"] != FORMAT_VERSION:
                raise ValueError(f"format {data['format_version']}")
            return tuple(from_dict(Row, row, where=f"rows[{i}]") for i, row in enumerate(data["rows"]))
        except (ValueError, TypeError, LookupError, RecursionError, ConfigError) as error:
            raise UnreadableFileError(
                "this is no report of an evaluation",
                given=f"{file}: {error}",
                expected=f"a {REPORT} of format {FORMAT_VERSION}, as featinv eval writes it",
                remedy="evaluate again",
            ) from error

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write `report.json` with the rows and `images.jsonl` with a line for each image and setting.

        Returns:
            Their paths.
        """
        with output_folder(folder) as made, file_errors(made):
            report, items = made / REPORT, made / "images.jsonl"
            report.write_text(json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
            lines = [json.dumps(item.to_dict(), allow_nan=False) + "\n" for item in self.items]
            items.write_text("".join(lines), encoding="utf-8")
        return [report, items]
