"""Image files of every format and mode."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from random import Random

from mutate import fields, plain, png
from PIL import Image
from target import Target

from featinv_fast.features import ImageReading, center_crop, read_image

SIZE = (17, 11)
SUFFIXES = {".jpg": "JPEG", ".tif": "TIFF"} | {
    f".{name.lower()}": name for name in ("BMP", "JPEG", "PNG", "TIFF", "WEBP")
}
MODES = {
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "GIF": ("L", "P"),
    "JPEG": ("L", "RGB", "CMYK"),
    "JPEG2000": ("L", "RGB", "RGBA"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "PPM": ("1", "L", "RGB"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "I;16", "F"),
    "WEBP": ("RGB", "RGBA"),
}
PIXEL_BYTES = 4  # what Pillow takes for a pixel of most modes


class Images(Target):
    """Small pictures, each in its own mode, some with an EXIF tag, a palette's transparency, several pages."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.seeds = {(kind, mode): _picture(kind, mode) for kind, modes in MODES.items() for mode in modes}

    def mutant(self, random: Random, folder: Path) -> Path:
        """A file whose suffix is mostly that of its format."""
        kind, mode = random.choice(tuple(self.seeds))
        content = _mutated(random, kind, self.seeds[kind, mode])
        # Readers go by the content; formats without a suffix of their own come under one of the others.
        suffixes = [suffix for suffix, named in SUFFIXES.items() if named == kind] or list(SUFFIXES)
        path = folder / f"mutant{random.choice(suffixes)}"
        path.write_bytes(content)
        return path

    def declared(self, path: Path) -> int | None:
        """Width times height, where Pillow recognises the file."""
        try:
            with warnings.catch_warnings(), Image.open(path) as image:
                warnings.simplefilter("ignore")
                return PIXEL_BYTES * image.width * image.height
        except Exception:  # noqa: BLE001 -- whatever the library raises: it is no image
            return None

    def run(self, path: Path) -> None:
        """Read it as a backbone's input, turned as its EXIF tag says or not."""
        for reading in (ImageReading(), ImageReading(exif_rotation=True)):
            center_crop(read_image(path, reading), 16, reading).tobytes()


def _picture(kind: str, mode: str) -> bytes:
    width, height = SIZE
    ramp = Image.frombytes("RGB", SIZE, bytes((x * 7 + y * 3) % 256 for y in range(height) for x in range(width * 3)))
    image = ramp.convert("L").convert("I").convert(mode) if mode == "I;16" else ramp.convert(mode)
    options: dict[str, object] = {}
    if mode == "P" and kind == "PNG":
        options["transparency"] = bytes(range(16))
    if kind in ("JPEG", "PNG", "WEBP") and mode == "RGB":
        exif = Image.Exif()
        exif[0x0112] = 6
        options["exif"] = exif.tobytes()
    if kind == "TIFF" and mode in ("L", "RGB"):
        options |= {"save_all": True, "append_images": [image]}
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _mutated(random: Random, kind: str, content: bytes) -> bytes:
    if random.random() < 0.12:
        return plain.mutated(random, content)
    match kind:
        case "PNG":
            return png.mutated(random, content)
        case "JPEG":
            return fields.mutated_jpeg(random, content)
        case "TIFF":
            return fields.mutated(random, content, fields.tiff_places(content))
        case "WEBP":
            return fields.mutated(random, content, fields.riff_places(content))
        case "BMP":
            return fields.mutated(random, content, list(fields.BMP))
    return plain.mutated(random, content, first=64)


TARGET = Images
