"""One call of `Runtime.invert`: its inputs, its batches, and its results as they come."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featinv_fast.errors import FeatInvError, NonFiniteFeatureError
from featinv_fast.features import non_finite_items, place_of
from featinv_fast.runtime.graph_loop import Loop
from featinv_fast.runtime.inversion import Inversion, OutputType, RunFlags, convert_images
from featinv_fast.runtime.sampling import Plan, start_noise

# Is told by how many denoising steps of rows a call has advanced, and how many it makes in all.
Progress = Callable[[int, int], object]


@dataclasses.dataclass
class Call:
    """Rows to compute and what is known of them. Row k is sample `k % samples` of feature map `k // samples`.

    Attributes:
        maps: [B, C, H, W].
        samples: rows for each map.
        seeds: one for each row.
        start: explicit start noise [N, 4, h, w], or None for the seeds' own.
        latent_shape: (4, h, w).
        image_size: edge of a decoded image in pixels.
        output_type: the form of the images.
        errors: row -> why it has no result.
        recomputed: rows computed again in fp32.
    """

    maps: Tensor
    samples: int
    seeds: tuple[int, ...]
    start: Tensor | None
    latent_shape: tuple[int, int, int]
    image_size: int
    output_type: OutputType
    errors: dict[int, FeatInvError] = dataclasses.field(default_factory=dict)
    recomputed: list[int] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self._latents = torch.full((len(self.seeds), *self.latent_shape), float("nan"))
        self._images: dict[int, Any] = {}
        for item, error in non_finite_errors(self.maps).items():
            self.errors |= dict.fromkeys(range(item * self.samples, (item + 1) * self.samples), error)

    @property
    def pending(self) -> list[int]:
        """Rows with neither a result nor an error."""
        return [row for row in range(len(self.seeds)) if row not in self.errors and row not in self._images]

    def subject(self, row: int) -> str:
        """What an error about a row is about."""
        if self.samples == 1:
            return f"row {place_of(row)}"
        return f"sample {row % self.samples} of feature map {place_of(row // self.samples)}"

    def compute(
        self,
        loop: Loop,
        plan: Plan,
        rows: Sequence[int],
        advance: Callable[[int], object],
        *,
        again: bool = False,
    ) -> list[int]:
        """Compute `rows` in one batch and keep what is finite.

        Args:
            loop: of the session that computes.
            plan: the run's constants.
            rows: which rows.
            advance: is told after each step how many rows made it.
            again: note that these rows were computed before, in half precision.

        Returns:
            The rows that overflowed. They are left pending.
        """
        session = loop.session
        items = sorted({row // self.samples for row in rows})
        place = {item: index for index, item in enumerate(items)}
        condition = session.run("condition_encoder", self.maps[items].to(session.device))
        condition = condition[[place[row // self.samples] for row in rows]]  # [B, channels, h, w]
        generators = [torch.Generator().manual_seed(self.seeds[row]) for row in rows]
        noise = start_noise(generators, self.latent_shape) if self.start is None else self.start[list(rows)]
        decode = self.output_type is not OutputType.LATENT
        start = noise.to(session.device)
        latents, decoded = loop(plan, condition, start, generators, lambda: advance(len(rows)), decode=decode)
        finite = torch.isfinite(latents).flatten(1).all(dim=1)
        images: Any = [None] * len(rows)
        if decoded is not None:
            finite &= torch.isfinite(decoded).flatten(1).all(dim=1)
            images = convert_images(decoded, self.output_type)
        if again:
            self.recomputed += rows
        good = finite.tolist()
        for index, row in enumerate(rows):
            if good[index]:
                self._latents[row] = latents[index].cpu()
                self._images[row] = images[index]
        return [row for row, is_good in zip(rows, good, strict=True) if not is_good]

    def result(self, flags: RunFlags) -> Inversion:
        """What there is so far. Rows without a result have an error, or get one that says they were not reached."""
        errors = dict(self.errors)
        for row in self.pending:
            errors[row] = FeatInvError(
                "was not computed",
                subject=self.subject(row),
                given="a call that was stopped",
                expected="a call that ends",
                remedy="run it again",
            )
        return Inversion(
            images=self._collect(),
            latents=self._latents,
            seeds=self.seeds,
            errors=dict(sorted(errors.items())),
            output_type=self.output_type,
            flags=dataclasses.replace(flags, recomputed=tuple(self.recomputed)),
        )

    def _collect(self) -> Any:
        rows = range(len(self.seeds))
        if self.output_type is OutputType.PIL:
            return [self._images.get(row) for row in rows]
        if self.output_type is OutputType.LATENT:
            return self._latents.numpy()
        size = self.image_size
        if self.output_type is OutputType.UINT8:
            images = np.zeros((len(rows), size, size, 3), dtype=np.uint8)
        else:
            images = np.full((len(rows), 3, size, size), np.nan, dtype=np.float32)
        for row, image in self._images.items():
            images[row] = image
        return torch.from_numpy(images) if self.output_type is OutputType.TORCH else images


def non_finite_errors(maps: Tensor) -> dict[int, NonFiniteFeatureError]:
    """For each item of `maps` [B, C, H, W] that holds NaN or infinite values, what to say of it."""
    return {
        item: NonFiniteFeatureError(
            "holds NaN or infinite values",
            subject=f"feature map {place_of(item)}",
            given=f"{int((~torch.isfinite(maps[item])).sum())} of {maps[item].numel()} values",
            expected="finite values",
            remedy="leave the map out, or pass errors='return' to invert the others",
            command_remedy="leave the map out; the others are inverted without it",
        )
        for item in non_finite_items(maps)
    }


@contextlib.contextmanager
def progress_bar(total: int, *, shown: bool | Progress) -> Iterator[Callable[[int], object]]:
    """A function that advances a bar on stderr, or the caller's own, by a number of denoising steps."""
    from tqdm import tqdm

    if not isinstance(shown, bool):
        own = shown
        yield lambda steps: own(steps, total)
        return
    with tqdm(total=total, desc="inverting", unit="step", disable=not shown) as bar:
        yield bar.update
