"""Images of every mode and file format that Pillow knows, as 8-bit RGB or refused by name."""

from __future__ import annotations

import io
import tracemalloc

import numpy as np
import pytest
from PIL import Image, ImageCms

from featinv_fast.errors import ArgumentError, ArgumentTypeError, ConfigError, UnreadableFileError
from featinv_fast.features import Backbone, ImageReading, center_crop, list_images, read_image, to_rgb

GREY = np.random.default_rng(0).integers(0, 256, (6, 5), dtype=np.uint8)
COLOURS = np.random.default_rng(1).integers(0, 256, (6, 5, 3), dtype=np.uint8)


def grey_rgb(values):
    return np.repeat(np.asarray(values)[:, :, None], 3, axis=2)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bit_grey_is_scaled(tmp_path, name):
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / name)
    assert np.array_equal(np.asarray(read_image(tmp_path / name)), grey_rgb(GREY))


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B"])
def test_byte_orders_of_sixteen_bits_in_memory(mode):
    order = ">u2" if mode == "I;16B" else "<u2"
    image = Image.frombytes(mode, (5, 6), (GREY.astype(np.uint16) * 257).astype(order).tobytes())
    assert np.array_equal(np.asarray(to_rgb(image)), grey_rgb(GREY))


def tiff(bits, values, photometric):
    """A TIFF file of one strip of grey in little-endian order, 12 bits packed as its standard says."""
    height, width = values.shape
    if bits == 12:
        low, high = values[:, 0::2].astype(int), values[:, 1::2].astype(int)
        packed = np.stack([low >> 4, (low & 15) << 4 | high >> 8, high & 255], axis=2)
        data = packed.astype(np.uint8).tobytes()
    else:
        data = values.astype("<u2").tobytes()
    entries = [(256, 3, width), (257, 3, height), (258, 3, bits), (259, 3, 1), (262, 3, photometric)]
    entries += [(273, 4, 8), (277, 3, 1), (278, 3, height), (279, 4, len(data))]
    table = len(entries).to_bytes(2, "little")
    for tag, kind, value in entries:
        table += b"".join(n.to_bytes(size, "little") for n, size in ((tag, 2), (kind, 2), (1, 4), (value, 4)))
    return b"II*\0" + (8 + len(data)).to_bytes(4, "little") + data + table + bytes(4)


@pytest.mark.parametrize(("bits", "photometric"), [(12, 1), (16, 1), (16, 0)])
def test_the_range_is_the_one_that_the_file_declares(tmp_path, bits, photometric):
    eight = GREY[:, :4]
    values = np.rint(eight / 255 * (2**bits - 1)).astype(np.uint16)
    values = values if photometric else 2**bits - 1 - values  # 0: white is zero
    (tmp_path / "a.tif").write_bytes(tiff(bits, values, photometric))
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.tif")), grey_rgb(eight))


def test_modes_that_pillow_converts():
    image = Image.fromarray(COLOURS)
    for mode in ("L", "1", "P", "CMYK", "YCbCr", "HSV", "RGBX"):
        given = image.convert(mode)
        assert np.array_equal(np.asarray(to_rgb(given)), np.asarray(given.convert("RGB")))
    plain = Image.new("RGB", (8, 8), (200, 30, 90))
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.profileToProfile(plain, *profiles, outputMode="LAB")
    assert np.abs(np.asarray(to_rgb(lab)).astype(int) - np.asarray(plain)).max() <= 4  # 8 bits of L, a and b


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "LA", "La", "PA"])
def test_transparent_pixels_show_the_background(mode):
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    image.putpixel((0, 0), (0, 0, 0, 0))
    given = image.convert("LA").convert(mode) if mode == "La" else image.convert(mode)
    assert np.asarray(to_rgb(given)).tolist() == [[[255, 255, 255], [0, 0, 0]]]
    seen = to_rgb(given, ImageReading(background=(10, 20, 30)))
    assert np.asarray(seen).tolist() == [[[10, 20, 30], [0, 0, 0]]]


def test_half_transparent_pixels_are_mixed(tmp_path):
    Image.new("RGBA", (3, 2), (0, 100, 200, 128)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").getpixel((0, 0)) == (127, 177, 227)
    assert read_image(tmp_path / "a.png", ImageReading(background=(0, 0, 0))).getpixel((0, 0)) == (0, 50, 100)


def test_tall_pictures_are_composed_without_a_seam():
    values = np.random.default_rng(2).integers(0, 256, (600, 3, 4), dtype=np.uint8)
    image = Image.fromarray(values)
    whole = Image.new("RGBA", image.size, (10, 20, 30, 255))
    whole.alpha_composite(image)
    seen = to_rgb(image, ImageReading(background=(10, 20, 30)))
    assert np.array_equal(np.asarray(seen), np.asarray(whole)[:, :, :3])


@pytest.mark.parametrize("mode", ["P", "RGB", "L", "1", "I;16"])
def test_a_transparent_colour_shows_the_background(tmp_path, mode):
    if mode == "I;16":
        image, key, shown = Image.fromarray(np.array([[257 * 7, 257 * 9]], np.uint16)), 257 * 7, (9, 9, 9)
    elif mode == "RGB":
        image, key, shown = Image.fromarray(np.array([[[7, 8, 9], [9, 8, 7]]], np.uint8)), (7, 8, 9), (9, 8, 7)
    else:
        values = np.array([[0, 255]], np.uint8)
        image, key, shown = Image.fromarray(values).convert(mode), 0, (255, 255, 255)
        key = image.getpixel((0, 0)) if mode == "P" else key
    image.save(tmp_path / "a.png", transparency=key)
    seen = np.asarray(read_image(tmp_path / "a.png", ImageReading(background=(1, 2, 3))))
    assert seen.tolist() == [[[1, 2, 3], list(shown)]]


@pytest.mark.parametrize(("mode", "name"), [("F", "a.tif"), ("I", "a.tif")])
def test_modes_without_a_range_are_refused_by_name(tmp_path, mode, name):
    image = Image.new(mode, (3, 2), 70000)
    with pytest.raises(ArgumentError, match=f"mode '{mode}'"):
        to_rgb(image)
    image.save(tmp_path / name)
    with pytest.raises(ArgumentError, match=rf"(?s)a\.tif.*mode '{mode}'"):
        read_image(tmp_path / name)


def test_photographs_are_turned_only_when_asked(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(COLOURS).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.png")), COLOURS)
    turned = read_image(tmp_path / "a.png", ImageReading(exif_rotation=True))
    assert np.array_equal(np.asarray(turned), np.rot90(COLOURS, -1))


def test_files_of_several_pictures_are_refused_but_for_photographs_with_previews(tmp_path):
    first, second = (Image.fromarray(np.full((4, 4, 3), value, np.uint8)) for value in (10, 200))
    for name in ("a.png", "a.webp", "a.tif", "a.gif"):
        first.save(tmp_path / name, save_all=True, append_images=[second])
        with pytest.raises(ArgumentError, match=r"(?s)several images.*a\."):
            read_image(tmp_path / name)
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second])
    assert read_image(tmp_path / "a.jpg").getpixel((0, 0)) == (10, 10, 10)


def test_a_picture_of_more_pixels_than_is_safe_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    Image.new("1", (300, 300)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100 * 100)
    with pytest.raises(ArgumentError, match=r"(?s)cannot be read.*a\.png.*exceeds limit"):
        read_image(tmp_path / "a.png")


def test_damaged_files_of_every_format_are_named(tmp_path):
    random = np.random.default_rng(3)
    for suffix in ("bmp", "jpg", "png", "tif", "webp"):
        buffer = io.BytesIO()
        Image.fromarray(COLOURS.repeat(8, 0).repeat(8, 1)).save(
            buffer, format={"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix)
        )
        path = tmp_path / f"a.{suffix}"
        for _ in range(40):
            content = bytearray(buffer.getvalue())
            for place in random.integers(0, min(len(content), 300), 4):
                content[place] = random.integers(0, 256)
            path.write_bytes(content[: random.integers(1, len(content) + 1)])
            try:
                assert read_image(path).mode == "RGB"
            except ArgumentError as error:
                assert path.name in str(error)  # noqa: PT017 -- some of the damaged files are whole pictures


def test_what_pillow_would_hand_to_other_programs_is_no_picture(tmp_path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(ArgumentError, match="cannot be read"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("size", [(1, 10_000), (10_000, 3), (130, 2)])
def test_a_long_picture_is_cropped_without_being_resized_whole(size):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    tracemalloc.start()
    crop = center_crop(image, 32)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    edges = [int(32 * edge / min(size)) for edge in size]
    left, top = (round((edge - 32) / 2) for edge in edges)
    whole = image.resize(edges, Image.Resampling.BILINEAR).crop((left, top, left + 32, top + 32))
    assert np.abs(np.asarray(crop).astype(int) - np.asarray(whole)).max() <= 1
    assert peak < 10 * 32 * 32 * 3


def test_images_in_python_follow_the_same_rules():
    backbone = Backbone.__new__(Backbone)  # preprocessing needs no network
    backbone.input_size = 8
    for image, error, reason in [
        (np.zeros((8, 8, 3)), ArgumentTypeError, "no image"),
        (Image.new("F", (8, 8)), ArgumentError, "mode 'F'"),
        (Image.new("RGB", (0, 8)), ArgumentError, "no pixels"),
    ]:
        with pytest.raises(error, match=rf"(?s)images\[1\].*{reason}"):
            backbone.preprocess([Image.new("L", (8, 8)), image])


@pytest.mark.parametrize("background", [(1, 2), (0, 0, 256), (0.5, 0, 0)])
def test_a_background_is_a_colour(background):
    with pytest.raises(ConfigError, match="background"):
        ImageReading(background=background)


def test_images_are_listed_in_natural_order(tmp_path):
    names = ["img10.png", "img2.PNG", "b/1.JPEG", "b/01.jpg", "a11/x.webp", "a2/y.tif", ".hidden.png", ".git/z.png"]
    for name in [*names, "notes.txt", "b/a.npy"]:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    listed = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert listed == ["a2/y.tif", "a11/x.webp", "b/1.JPEG", "b/01.jpg", "img2.PNG", "img10.png"]
    assert list_images(str(tmp_path / "img10.png")) == [tmp_path / "img10.png"]


def test_folders_without_images(tmp_path):
    (tmp_path / "notes.txt").touch()
    for path, reason in [
        (tmp_path, "no images"),
        (tmp_path / "notes.txt", "no images"),
        (tmp_path / "none", "no such folder"),
    ]:
        with pytest.raises(ArgumentError, match=reason):
            list_images(path)


def test_images_that_are_none_are_named(tmp_path):
    Image.new("RGB", (3, 2), (10, 20, 30)).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    for damaged in (whole[:40], b"", b"no image"):
        (tmp_path / "a.png").write_bytes(damaged)
        with pytest.raises(ArgumentError, match=r"a\.png"):
            read_image(tmp_path / "a.png")
    with pytest.raises(ArgumentError, match="no such file"):
        read_image(tmp_path / "none.png")


def test_a_lack_of_memory_is_no_damage(tmp_path, monkeypatch):
    def exhausted(*_: object, **__: object) -> None:
        raise MemoryError

    Image.new("RGB", (4, 4)).save(tmp_path / "sound.png")
    monkeypatch.setattr("featinv_fast.features.images.to_rgb", exhausted)
    with pytest.raises(UnreadableFileError, match="not enough memory") as caught:
        read_image(tmp_path / "sound.png")
    assert "sound.png" in str(caught.value)
    assert "another program" not in str(caught.value)
