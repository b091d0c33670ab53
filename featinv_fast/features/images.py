"""Image files and Pillow images as 8-bit RGB: the one way in which every command and every training sees pixels.

| Pillow's mode | what is made of it |
|---|---|
| RGB, RGBX, L, 1, P, CMYK, YCbCr, HSV, LAB | converted by Pillow; embedded colour profiles are not applied |
| RGBA, RGBa, LA, La, PA, and any mode with a transparent colour | composed over `ImageReading.background` |
| I;16 and its byte orders | scaled to 8 bits from the range that the file declares, 16 bits where none is declared |
| I | as I;16 where a PNG or PGM file was read, which Pillow brings to 16 bits; else refused, having no fixed range |
| F and all others | refused by name |

Files of several pictures (animations, pages) are refused, but for MPO: cameras append previews to a photograph so.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featinv_fast.checks import require_input
from featinv_fast.config import AS_STORED, ImageReading
from featinv_fast.errors import ArgumentError, ArgumentTypeError, FeatInvError, UnreadableFileError

if TYPE_CHECKING:
    from PIL import Image

# By content, whatever the name says. Not EPS and its like, which Pillow hands to other programs.
_FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_CONVERTED = ("RGB", "RGBX", "L", "1", "P", "CMYK", "YCbCr", "HSV", "LAB")
_WITH_ALPHA = {"RGBA": "RGBA", "RGBa": "RGBA", "LA": "LA", "La": "LA", "PA": "PA"}  # -> not premultiplied
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # of TIFF
_ORIENTATION = 274  # of EXIF
_BAND = 256  # rows scaled or composed at once, so that no whole image is held in wide integers or copied
# A picture whose sides differ more is cut before it is resized: resized whole, 1 x 10,000 pixels would take gigabytes.
_LONGEST = 64


def read_image(path: str | Path, reading: ImageReading = AS_STORED) -> Image.Image:
    """An image file as RGB.

    Raises:
        InputNotFoundError: there is no such file.
        UnreadableFileError: not a whole image, several images, or more pixels than Pillow reads without danger
            (`PIL.Image.MAX_IMAGE_PIXELS`, twice).
        ArgumentError: no pixels, or a mode without a fixed range.
    """
    from PIL import Image

    path = require_input(path, "file")
    try:
        with Image.open(path, formats=_FORMATS) as image:
            if image.format != "MPO" and getattr(image, "is_animated", False):
                raise UnreadableFileError(
                    "this file holds several images",
                    given=f"{path}: {getattr(image, 'n_frames', 'several')}",
                    expected="one image in each file",
                    remedy="save the image you mean as a file of its own",
                )
            rgb = to_rgb(image, reading, name=str(path))
            return _turned(rgb, image.getexif().get(_ORIENTATION, 1)) if reading.exif_rotation else rgb
    except FeatInvError:
        raise
    except MemoryError as error:
        raise UnreadableFileError(
            "there is not enough memory to read this image",
            given=path,
            expected="memory for its pixels, four bytes each and more while they are converted",
            remedy="read fewer images at once, or save it smaller: backbones see it in their own size",
        ) from error
    except Exception as error:  # Pillow's readers show damage in any exception
        raise UnreadableFileError(
            "this image cannot be read",
            given=f"{path}: {str(error) or type(error).__name__}",
            expected="a whole image",
            remedy="open it in another program and save it again, or take it away",
        ) from error


def to_rgb(image: Image.Image, reading: ImageReading = AS_STORED, *, name: str = "the image") -> Image.Image:
    """A Pillow image of any mode with a defined meaning as RGB; see the table of this file.

    Raises:
        ArgumentTypeError: no Pillow image.
        ArgumentError: it has no pixels, or a mode without a fixed range.
    """
    from PIL import Image

    if not isinstance(image, Image.Image):
        raise ArgumentTypeError(
            f"{name} is no image",
            given=type(image).__name__,
            expected="a PIL image",
            remedy="open it with features.read_image, or convert an array by PIL.Image.fromarray",
        )
    if 0 in image.size:
        raise ArgumentError(
            f"{name} has no pixels",
            given=f"{image.width}x{image.height}",
            expected="at least 1x1",
            remedy="leave it out",
        )
    mode = image.mode
    if mode in _SIXTEEN_BITS or (mode == "I" and image.format in ("PNG", "PPM")):
        return _from_sixteen_bits(image, reading)
    if mode in _WITH_ALPHA or (mode in _CONVERTED and image.has_transparency_data):
        return _composed(image, reading)
    if mode in _CONVERTED:
        return image.convert("RGB")
    raise ArgumentError(
        f"{name} has pixels of a mode without a fixed range",
        given=f"mode {mode!r}",
        expected=f"one of {', '.join((*_CONVERTED, *_WITH_ALPHA, *_SIXTEEN_BITS))}",
        remedy="scale its values to 8 or 16 bits and save it again: what is black and white cannot be known here",
    )


def center_crop(
    image: Image.Image, size: int, reading: ImageReading = AS_STORED, *, name: str = "the image"
) -> Image.Image:
    """The centre of `image` as RGB, `size` pixels square, its shorter side resized to `size` first (bilinear).

    The same pixels as torchvision's Resize(size) and CenterCrop(size), the official preprocessing of FeatInv, whatever
    interpolation and crop timm would evaluate the model with.

    Raises:
        ArgumentTypeError, ArgumentError: see `to_rgb`.
    """
    from PIL import Image

    image = to_rgb(image, reading, name=name)
    width, height = image.size
    shorter = min(width, height)
    resized = (int(size * width / shorter), int(size * height / shorter))
    left, top = (round((edge - size) / 2) for edge in resized)
    if max(width, height) > _LONGEST * shorter:
        # The same sampling points, without the pixels that the crop would drop.
        scale = (width / resized[0], height / resized[1])
        box = (left * scale[0], top * scale[1], (left + size) * scale[0], (top + size) * scale[1])
        return image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    if resized != image.size:
        image = image.resize(resized, Image.Resampling.BILINEAR)
    return image.crop((left, top, left + size, top + size))


def _composed(image: Image.Image, reading: ImageReading) -> Image.Image:
    """An image with transparency over the background, a band at a time: no second copy of it is held."""
    from PIL import Image

    rgb = Image.new("RGB", image.size)
    for top in range(0, image.height, _BAND):
        box = (0, top, image.width, min(top + _BAND, image.height))
        band = image.crop(box).convert(_WITH_ALPHA.get(image.mode)).convert("RGBA")
        canvas = Image.new("RGBA", band.size, (*reading.background, 255))
        canvas.alpha_composite(band)
        rgb.paste(canvas.convert("RGB"), box)
    return rgb


def _from_sixteen_bits(image: Image.Image, reading: ImageReading) -> Image.Image:
    """Grey of up to 16 bits, its white to 255; a 16-bit copy of an 8-bit image gives that image."""
    from PIL import Image

    tags = getattr(image, "tag_v2", {})
    white = 2 ** _first(tags.get(_BITS_PER_SAMPLE, 16)) - 1
    values = np.asarray(image)  # [H, W]
    grey = np.empty(values.shape, np.uint8)
    for start in range(0, len(values), _BAND):
        band = values[start : start + _BAND].astype(np.int64).clip(0, white)
        grey[start : start + _BAND] = (band * 255 + white // 2) // white
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        grey = 255 - grey
    result = Image.fromarray(grey)
    transparent = image.info.get("transparency")
    if transparent is not None:
        result.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
        return _composed(result, reading)
    return result.convert("RGB")


def _first(value: Any) -> int:
    return int(value[0] if isinstance(value, tuple) else value)


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    """`image` as the EXIF tag `orientation` (1 to 8) says; other numbers are reserved and mean nothing."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return image.transpose(turns[orientation]) if orientation in turns else image
