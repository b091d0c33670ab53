"""The result of `Runtime.invert`: images, and for each row what became of it."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from featinv_fast.checks import count, file_errors, output_folder
from featinv_fast.config import to_dict
from featinv_fast.errors import ArgumentError, FeatInvError
from featinv_kernels import to_uint8


class OutputType(enum.StrEnum):
    """The form of `Inversion.images`."""

    UINT8 = "uint8"  # numpy uint8 [N, H, W, 3]
    FLOAT = "float"  # numpy float32 [N, 3, H, W], about [-1, 1]
    TORCH = "torch"  # the same as a torch tensor on the CPU
    PIL = "pil"  # a list of PIL images
    LATENT = "latent"  # numpy float32 [N, 4, h, w], not decoded


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunFlags:
    """What really ran.

    Attributes:
        backend: name of the backend.
        device: where it ran.
        precision: of the arithmetic.
        sampler: name of the sampler.
        steps: the steps that were made; DDIM's official time grid may hold more than were asked for.
        guidance_scale: classifier-free guidance.
        batch_size: images computed at once, at the end of the run.
        recomputed: rows that overflowed in half precision and were computed again in fp32.
    """

    backend: str
    device: str
    precision: str
    sampler: str
    steps: int
    guidance_scale: float
    batch_size: int
    recomputed: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inversion:
    """Images of feature maps. Row k is sample `k % samples` of feature map `k // samples`.

    Attributes:
        images: in the form of `output_type`. A failed row is zeros (uint8), NaN (float, torch, latent) or None (pil).
        latents: the final latents [N, 4, h, w] on the CPU; NaN for failed rows.
        seeds: the seed of each row.
        errors: row -> what went wrong with it. Empty when all went well.
        output_type: the form of `images`.
        flags: what ran.
    """

    images: Any
    latents: Tensor
    seeds: tuple[int, ...]
    errors: dict[int, FeatInvError]
    output_type: OutputType
    flags: RunFlags

    def __len__(self) -> int:
        return len(self.seeds)

    @property
    def ok(self) -> np.ndarray:
        """Boolean [N]: which rows hold a result."""
        return np.array([row not in self.errors for row in range(len(self))], dtype=bool)

    def to_pil(self) -> list[Image.Image | None]:
        """The images as PIL images; None for failed rows.

        Raises:
            ArgumentError: latents were asked for, so there are no images.
        """
        if isinstance(self.images, list):
            return list(self.images)
        if self.output_type is OutputType.LATENT:
            raise ArgumentError(
                "latents are not images",
                given="an inversion with output_type='latent'",
                expected="another output_type",
                remedy="decode them: runtime.decode(inversion.latents)",
            )
        images = self.images
        if self.output_type is not OutputType.UINT8:
            images = to_uint8(torch.as_tensor(images)).numpy()
        return [Image.fromarray(images[row]) if ok else None for row, ok in enumerate(self.ok)]

    def grid(self, columns: int | None = None) -> Image.Image:
        """All images side by side on one sheet; the place of a failed row stays grey.

        Raises:
            ArgumentError: there are no images, or less than one column.
        """
        images = self.to_pil()
        done = [image for image in images if image is not None]
        if not done:
            raise ArgumentError(
                "there is nothing to show", given="no image", expected="at least one image", remedy="see .errors"
            )
        columns = math.ceil(math.sqrt(len(images))) if columns is None else count("columns", columns)
        width, height = done[0].size
        sheet = Image.new("RGB", (columns * width, math.ceil(len(images) / columns) * height), (127, 127, 127))
        for row, image in enumerate(images):
            if image is not None:
                sheet.paste(image, (row % columns * width, row // columns * height))
        return sheet

    def save(self, folder: str | os.PathLike[str], *, names: Sequence[str] | None = None) -> list[Path]:
        """Write a PNG for each row with a result, and `inversion.json`, which tells seeds, errors and what ran.

        Args:
            folder: made if needed.
            names: file names without suffix, one for each row; by default the row's number.

        Returns:
            The paths of the images.

        Raises:
            ArgumentError: there are no images, or another number of names than of rows.
            FileError: the folder or a file cannot be written.
        """
        names = [f"{row:06d}" for row in range(len(self))] if names is None else names
        with output_folder(folder) as made:
            paths = self.save_images(made, names)
            record = {"flags": to_dict(self.flags), "items": self.items(names)}
            with file_errors(made):
                (made / "inversion.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        return paths

    def save_images(self, folder: str | os.PathLike[str], names: Sequence[str]) -> list[Path]:
        """Write a PNG for each row with a result; see `save`.

        Raises:
            ArgumentError: there are no images, or another number of names than of rows.
        """
        if len(names) != len(self):
            raise ArgumentError(
                "the number of names is not the number of rows",
                given=len(names),
                expected=len(self),
                remedy="name each row",
            )
        images = self.to_pil()
        paths = []
        with output_folder(folder) as made:
            for name, image in zip(names, images, strict=True):
                if image is not None:
                    paths.append(made / f"{name}.png")
                    with file_errors(paths[-1]):
                        image.save(paths[-1])
        return paths

    def items(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Name, seed and error of each row, as plain data."""
        return [
            {"name": name, "seed": seed, "error": str(self.errors[row]) if row in self.errors else None}
            for row, (name, seed) in enumerate(zip(names, self.seeds, strict=True))
        ]


class InversionInterrupted(KeyboardInterrupt):
    """Ctrl-C inside `Runtime.invert`. `finished` holds the rows that were done by then."""

    command_message = "interrupted"  # nobody can look into `.finished` there

    def __init__(self, finished: Inversion) -> None:
        self.finished = finished
        super().__init__(f"interrupted: {int(finished.ok.sum())} of {len(finished)} images are in `.finished`")


def convert_images(images: Tensor, output_type: OutputType) -> Any:
    """Decoded images [B, 3, H, W] on any device in the form of `output_type`."""
    if output_type in (OutputType.UINT8, OutputType.PIL):
        array = to_uint8(images).cpu().numpy()
        return array if output_type is OutputType.UINT8 else [Image.fromarray(row) for row in array]
    tensor = images.float().cpu()
    return tensor if output_type is OutputType.TORCH else tensor.numpy()
