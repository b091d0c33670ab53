"""Which images of a folder a training sees: parts that have nothing in common, and samples.

All of it follows from a seed, and takes the same share of each class: the hold-out ranks each class's images by a hash
of the seed and their content, the sample by one of the seed and their names. Images of one content are one image to the
hold-out, so that no copy of what is held out is trained on, also where the copies lie in different classes. An image
that is added to a class moves at most one other image across each border between two parts.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Sequence

from featinv_fast.errors import ArgumentError
from featinv_fast.train.settings import Split


def part(
    contents: Sequence[str], classes: Sequence[Hashable], split: Split, holdout: tuple[float, float], seed: int
) -> list[int]:
    """The places of the images that belong to `split`, in order.

    Args:
        contents: something that is equal for images of equal content alone.
        classes: of the images; of copies in several classes the first one counts.
        split: the part.
        holdout: shares of the validation and of the test part. Each has an image or more of every class of three or
            more; smaller classes are in the training part alone.
        seed: another one draws other parts.

    Raises:
        ArgumentError: the part is empty.
    """
    of_class: defaultdict[Hashable, list[str]] = defaultdict(list)
    first = dict(zip(reversed(contents), reversed(classes), strict=True))  # the class of each content's first image
    for content, name in first.items():
        of_class[name].append(content)
    chosen = set()
    for members in of_class.values():
        ranked = sorted(members, key=lambda content: _rank(seed, "split", content))
        validation, test = (max(1, round(share * len(ranked))) if len(ranked) > 2 else 0 for share in holdout)
        bounds = {
            Split.VALIDATION: slice(validation),
            Split.TEST: slice(validation, validation + test),
            Split.TRAIN: slice(validation + test, None),
        }
        chosen.update(ranked[bounds[split]])
    found = [place for place, content in enumerate(contents) if content in chosen]
    if not found:
        raise ArgumentError(
            f"the {split} part of the folder is empty",
            given=f"{len(contents)} images, holdout = {list(holdout)}",
            expected="classes of three different images or more",
            remedy="use a folder with more images, or leave out data.split",
        )
    return found


def sample(names: Sequence[str], classes: Sequence[Hashable], count: int, seed: int) -> list[int]:
    """The places of `count` images, in order. A larger sample holds the smaller one.

    Args:
        names: of the images, all different.
        classes: of the images.
        count: how many.
        seed: another one draws another sample.

    Raises:
        ArgumentError: there are not so many.
    """
    if count > len(names):
        raise ArgumentError(
            "there are not so many images",
            given=f"data.count = {count}",
            expected=f"at most {len(names)}, which is all",
            remedy="lower data.count, or leave it out to take all",
        )
    of_class: defaultdict[Hashable, list[int]] = defaultdict(list)
    for place in sorted(range(len(names)), key=lambda place: _rank(seed, "sample", names[place])):
        of_class[classes[place]].append(place)
    # Where in its class an image comes, as a share of it: the images before any such share are as many of each class.
    shares = {
        place: ((rank + 0.5) / len(members), _rank(seed, "sample", names[place]))
        for members in of_class.values()
        for rank, place in enumerate(members)
    }
    return sorted(sorted(shares, key=shares.__getitem__)[:count])


def _rank(seed: int, purpose: str, text: str) -> bytes:
    return hashlib.sha256(f"{seed}/{purpose}/{text}".encode("utf-8", "surrogateescape")).digest()
