"""The pictures of an evaluation: the first originals of each group, with what became of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from PIL import Image
from torch import Tensor

from featinv_fast.evaluate.inputs import Example
from featinv_fast.evaluate.pages import spread_map
from featinv_fast.evaluate.report import Picture
from featinv_fast.evaluate.series import Outcome

# Of several reconstructions of an image, so many are shown.
SHOWN_SAMPLES = 4


class KeptPictures:
    """Collects pictures.

    Args:
        of_a_group: how many of each group.

    Attributes:
        pictures: those so far.
    """

    def __init__(self, of_a_group: int) -> None:
        self.pictures: list[Picture] = []
        self._of_a_group = of_a_group

    def begin(self, examples: Sequence[Example], crops: Sequence[Image.Image | None]) -> dict[int, Picture]:
        """Of a batch of originals those that are wanted: row -> the picture to fill."""
        kept = Counter(picture.group for picture in self.pictures)
        wanted = {}
        for row, (example, crop) in enumerate(zip(examples, crops, strict=True)):
            if kept[example.group] < self._of_a_group:
                kept[example.group] += 1
                wanted[row] = Picture(name=example.name, group=example.group, original=crop, reconstructions={})
        self.pictures += wanted.values()
        return wanted


def fill(
    wanted: Mapping[int, Picture], label: str, samples: int, images: Tensor, outcomes: Mapping[int, Outcome]
) -> None:
    """Add reconstructions uint8 [B * samples, s, s, 3] of a setting, where there is an outcome."""
    for number, picture in wanted.items():
        rows = range(number * samples, (number + 1) * samples)
        for sample, row in enumerate(rows[:SHOWN_SAMPLES]):
            title = f"{label} ({sample + 1})" if sample else label
            shown = Image.fromarray(images[row].numpy()) if row in outcomes else None
            picture.reconstructions[title] = (shown, outcomes.get(row, Outcome()).cosine)
        made = [row for row in rows if row in outcomes]
        if len(made) > 1:
            picture.spreads[label] = spread_map(images[made])
