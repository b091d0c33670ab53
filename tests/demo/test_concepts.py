import numpy as np

from featinv_fast.demo import ABSENT, CLASS_NAMES, CONCEPTS, annotate, describe, draw_scenes, object_masks


def test_codes_are_names_or_absent():
    scenes = draw_scenes(range(1000))
    codes = annotate(scenes)
    assert set(codes) == set(CONCEPTS)
    for concept, names in CONCEPTS.items():
        assert codes[concept].dtype == np.int64
        assert codes[concept].max() == len(names) - 1
        if concept == "background":
            assert codes[concept].shape == (1000,)
            assert codes[concept].min() == 0
        else:
            assert codes[concept].shape == (1000, 3)
            np.testing.assert_array_equal(codes[concept] == ABSENT, ~scenes.present)
    assert (np.bincount(codes["cell"][:, 0], minlength=9) > 40).all()


def test_cells_and_sizes_agree_with_the_masks():
    scenes = draw_scenes(range(200))
    codes, masks = annotate(scenes), object_masks(scenes)[:, 0]
    x = masks.any(axis=1)  # [200, 64] columns
    middle = (x.argmax(axis=1) + 63 - x[:, ::-1].argmax(axis=1)) / 2
    column = codes["cell"][:, 0] % 3
    assert middle[column == 0].mean() < middle[column == 1].mean() < middle[column == 2].mean()
    assert middle[column == 0].max() < 32 < middle[column == 2].min()
    area = masks.sum(axis=(1, 2))
    huge = codes["size"][:, 0] == CONCEPTS["size"].index("huge")
    assert area[huge].mean() > 1.3 * area[~huge].mean()


def test_labels_are_named_after_shape_and_pattern():
    scenes = draw_scenes(range(100))
    for label, shape, pattern in zip(scenes.labels, scenes.shape[:, 0], scenes.pattern[:, 0], strict=True):
        assert CLASS_NAMES[label] == f"{CONCEPTS['pattern'][pattern]} {CONCEPTS['shape'][shape]}"


def test_descriptions_name_every_object():
    scenes = draw_scenes(range(100))
    for row, line in enumerate(describe(scenes)):
        objects, background = line.split("; ")
        assert objects.count("(") == scenes.present[row].sum()
        assert background == CONCEPTS["background"][scenes.background[row]]
        colour, shape = (CONCEPTS[concept][annotate(scenes)[concept][row, 0]] for concept in ("colour", "shape"))
        assert f"{colour} {shape} (" in objects.split(")")[0]
