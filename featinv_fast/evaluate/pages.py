"""A picture page: each original beside its reconstructions, the cosine under each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from featinv_fast.errors import ArgumentError
from featinv_fast.evaluate.measures.spread import pixel_deviation
from featinv_fast.evaluate.report import Picture
from featinv_fast.jobs.names import readable

MARGIN = 16
GAP = 6
BLOCK_GAP = 28
HEADER = 24
CAPTION = 20
FONT_SIZE = 13
WHITE = 64  # levels of standard deviation
PAPER, INK, PALE, HOLE = (255, 255, 255), (32, 32, 32), (110, 110, 110), (225, 225, 225)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
    """An image with the line under it; without an image its place stays grey."""

    image: Image.Image | None
    caption: str = ""


def contact_sheet(
    titles: Sequence[str], strips: Sequence[Sequence[Panel]], *, edge: int = 128, across: int = 1
) -> Image.Image:
    """Strips of panels under each other, the same titles above all.

    Args:
        titles: of the panels of a strip.
        strips: one for each scene, of as many panels as there are titles.
        edge: of a panel in pixels; images are resized to it.
        across: strips side by side, for a wide page of many scenes.

    Raises:
        ArgumentError: no strips, or a strip of another length.
    """
    if not strips or not titles or any(len(strip) != len(titles) for strip in strips) or across < 1:
        raise ArgumentError(
            "these panels make no page",
            given=f"{len(titles)} titles, strips of {sorted({len(strip) for strip in strips})}, {across} across",
            expected="at least one strip, each with a panel for each title",
            remedy="pass as many panels in each strip as there are titles",
        )
    across = min(across, len(strips))
    block = len(titles) * (edge + GAP) - GAP
    line = edge + CAPTION + GAP
    width = 2 * MARGIN + across * (block + BLOCK_GAP) - BLOCK_GAP
    height = 2 * MARGIN + HEADER + -(-len(strips) // across) * line - GAP
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(FONT_SIZE)
    for column in range(across):
        for i, title in enumerate(titles):
            left = MARGIN + column * (block + BLOCK_GAP) + i * (edge + GAP)
            pen.text((left + edge / 2, MARGIN + HEADER / 2), _fitting(title, font, edge), INK, font, anchor="mm")
    for number, strip in enumerate(strips):
        for i, panel in enumerate(strip):
            left = MARGIN + number % across * (block + BLOCK_GAP) + i * (edge + GAP)
            top = MARGIN + HEADER + number // across * line
            if panel.image is None:
                pen.rectangle((left, top, left + edge - 1, top + edge - 1), HOLE)
            else:
                resized = panel.image.convert("RGB").resize((edge, edge), Image.Resampling.LANCZOS)
                sheet.paste(resized, (left, top))
            caption = _fitting(panel.caption, font, edge)
            pen.text((left + edge / 2, top + edge + CAPTION / 2), caption, PALE, font, anchor="mm")
    return sheet


def picture_page(pictures: Sequence[Picture], *, edge: int = 128, across: int = 1) -> Image.Image:
    """The pictures of a report as a contact sheet: original, then every setting with its cosine.

    Raises:
        ArgumentError: there are no pictures.
    """
    labels = list(dict.fromkeys(label for picture in pictures for label in picture.reconstructions))
    strips = [
        [
            Panel(image=picture.original, caption=picture.group or picture.name),
            *(Panel(image=image, caption=caption(cosine)) for image, cosine in shown(picture, labels)),
        ]
        for picture in pictures
    ]
    return contact_sheet(["original", *labels], strips, edge=edge, across=across)


def spread_map(images: Tensor) -> tuple[Image.Image, float]:
    """The standard deviation of images uint8 [K, H, W, 3] at each pixel, and its mean in levels of 255.

    Black is none, white `WHITE` levels or more.
    """
    deviation = pixel_deviation(images).mean(dim=2)  # [H, W]
    grey = (deviation * (255 / WHITE)).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(grey.cpu().numpy()), deviation.mean().item()


def shown(picture: Picture, labels: Sequence[str]) -> list[tuple[Image.Image | None, float | None]]:
    """What a picture has for each label; an interrupted evaluation leaves gaps."""
    return [picture.reconstructions.get(label, (None, None)) for label in labels]


def caption(cosine: float | None) -> str:
    """The line under a reconstruction."""
    return "failed" if cosine is None else f"{cosine:.3f}"


def _fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """`text`, cut where it is wider than `width` pixels; names of images may hold what is no text."""
    text = readable(text)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
