"""The classes of a vision model by their names."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from PIL import Image

from featinv_fast.demo import CLASS_NAMES
from featinv_fast.demo.builtin import backbone_spec
from featinv_fast.errors import ArgumentError
from featinv_fast.features import Backbone


def class_numbers(backbone: Backbone, labels: Sequence[str]) -> list[int]:
    """The number of each label among the model's logits.

    A label is that number itself or a name: of the model's own configuration (transformers), of the built-in world for
    the built-in backbone, or of ImageNet where the model has as many classes (a synset or one of its words; timm's
    tables). Case and underscores do not count; a name of two classes is none.

    Raises:
        ArgumentError: the model has no classes, or not such ones.
    """
    count = class_count(backbone)
    if count is None:
        raise ArgumentError(
            "labels say nothing about a network without classes",
            given=backbone.spec.backbone,
            expected="a network with a classifier",
            remedy="leave the labels out, or name weights with a classifier",
            command_remedy="leave out --labels, or name --backbone-weights with a classifier",
        )
    names = _names(backbone, count)
    numbers = {label: _number(label, names, count) for label in dict.fromkeys(labels)}
    unknown = [label for label, number in numbers.items() if number is None]
    if unknown:
        known = f", or one of its names such as {', '.join(map(repr, list(names)[:3]))}" if names else ""
        raise ArgumentError(
            f"labels that are no classes of {backbone.spec.backbone}",
            given=unknown[:10],
            expected=f"the number of a class, 0 to {count - 1}{known}",
            remedy="give numbers; a classifier that was trained on folders counts them in alphabetical order",
        )
    return [number for label in labels if (number := numbers[label]) is not None]


def class_count(backbone: Backbone) -> int | None:
    """How many classes a model tells apart; None for one without a classifier."""
    size = backbone.input_size
    _, logits = backbone.features_and_logits(backbone.preprocess([Image.new("RGB", (size, size))]))
    return None if logits is None else logits.shape[1]


def _number(label: str, names: dict[str, int], count: int) -> int | None:
    if (named := names.get(_plain(label))) is not None:
        return named
    return int(label) if label.isascii() and label.isdigit() and int(label) < count else None


def _plain(name: str) -> str:
    return name.replace("_", " ").strip().casefold()


def _names(backbone: Backbone, count: int) -> dict[str, int]:
    found: dict[str, int] = {}
    ambiguous = set()
    for number, words in enumerate(_words(backbone, count)):
        for word in map(_plain, words):
            if found.setdefault(word, number) != number:
                ambiguous.add(word)
    return {name: number for name, number in found.items() if name not in ambiguous}


def _words(backbone: Backbone, count: int) -> list[list[str]]:
    """What each class is called; nothing where nobody knows."""
    if backbone.weights_sha256 == backbone_spec().weights_sha256:
        return [[name] for name in CLASS_NAMES]
    given = getattr(getattr(backbone.model, "config", None), "id2label", None) or {}
    if len(given) == count and not all(str(name).startswith("LABEL_") for name in given.values()):
        return [[given[number], *given[number].split(",")] for number in range(count)]
    with contextlib.suppress(ImportError):
        from timm.data import ImageNetInfo, infer_imagenet_subset

        if subset := infer_imagenet_subset({"num_classes": count}):
            tables = ImageNetInfo(subset)
            numbers = range(count)
            return [
                [tables.index_to_label_name(number), *tables.index_to_description(number).split(",")]
                for number in numbers
            ]
    return []
