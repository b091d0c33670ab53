import numpy as np
import pytest
from PIL import Image

from featinv_fast.errors import ArgumentError
from featinv_fast.evaluate import Panel, Picture, contact_sheet, picture_page
from featinv_fast.evaluate.pages import BLOCK_GAP, CAPTION, GAP, HEADER, HOLE, MARGIN


def plain(colour, edge=8):
    return Image.new("RGB", (edge, edge), colour)


def strips(count, columns):
    return [
        [Panel(image=plain((10 * number, 20 * column, 200)), caption=f"{number}.{column}") for column in range(columns)]
        for number in range(count)
    ]


@pytest.mark.parametrize(
    ("count", "columns", "edge", "across"), [(1, 1, 64, 1), (5, 3, 40, 1), (5, 3, 40, 2), (4, 2, 32, 9)]
)
def test_the_sheet_has_the_right_size_and_every_panel_in_its_place(count, columns, edge, across):
    sheet = contact_sheet([f"t{i}" for i in range(columns)], strips(count, columns), edge=edge, across=across)
    across = min(across, count)
    lines = -(-count // across)
    block = columns * edge + (columns - 1) * GAP
    assert sheet.size == (
        2 * MARGIN + across * block + (across - 1) * BLOCK_GAP,
        2 * MARGIN + HEADER + lines * (edge + CAPTION) + (lines - 1) * GAP,
    )
    pixels = np.asarray(sheet)
    for number in range(count):
        for column in range(columns):
            left = MARGIN + number % across * (block + BLOCK_GAP) + column * (edge + GAP)
            top = MARGIN + HEADER + number // across * (edge + CAPTION + GAP)
            panel = pixels[top : top + edge, left : left + edge]
            assert (panel == (10 * number, 20 * column, 200)).all()
            caption = pixels[top + edge : top + edge + CAPTION, left : left + edge]
            assert caption.min() < 160  # something is written there
            assert (pixels[top + edge + CAPTION :][:GAP, left : left + edge] == 255).all()


def test_titles_stay_above_their_panels():
    edge = 60
    sheet = np.asarray(contact_sheet(["a very long title that cannot fit", "b"], strips(1, 2), edge=edge))
    head = sheet[MARGIN : MARGIN + HEADER]
    assert head[:, MARGIN : MARGIN + edge].min() < 160
    assert (head[:, :MARGIN] == 255).all()
    assert (head[:, MARGIN + edge : MARGIN + edge + GAP] == 255).all()


def test_a_missing_image_leaves_its_place_grey():
    sheet = np.asarray(contact_sheet(["x"], [[Panel(image=None, caption="failed")]], edge=30))
    assert (sheet[MARGIN + HEADER :][:30, MARGIN : MARGIN + 30] == HOLE[0]).all()


@pytest.mark.parametrize(
    ("titles", "given", "across"),
    [(["a"], [], 1), ([], [[]], 1), (["a", "b"], strips(2, 1), 1), (["a"], strips(1, 1), 0)],
)
def test_panels_that_make_no_page(titles, given, across):
    with pytest.raises(ArgumentError, match="make no page"):
        contact_sheet(titles, given, across=across)


def test_a_picture_page_has_a_column_for_each_setting():
    def picture(number, reconstructions):
        return Picture(name=f"p{number}", group="", original=plain((0, 0, 0)), reconstructions=reconstructions)

    pictures = [
        picture(0, {"DDIM-4": (plain((9, 9, 9)), 0.5), "LCM-1": (None, None)}),
        picture(1, {"DDIM-4": (plain((7, 7, 7)), 0.25)}),  # interrupted before the second setting
    ]
    page = np.asarray(picture_page(pictures, edge=32))
    assert page.shape[1] == 2 * MARGIN + 3 * 32 + 2 * GAP
    last = MARGIN + 2 * (32 + GAP)
    for line in range(2):
        top = MARGIN + HEADER + line * (32 + CAPTION + GAP)
        assert (page[top : top + 32, MARGIN + 32 + GAP :][:, :32] == (9, 7)[line]).all()
        assert (page[top : top + 32, last : last + 32] == HOLE[0]).all()
    with pytest.raises(ArgumentError, match="make no page"):
        picture_page([])
