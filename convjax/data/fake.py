"""Made-up images of any shape and number, for measuring speed where the real ones are not at hand.

load("fake:32x32x3/10/50000", "train")                          # in memory
open_examples("fake:224x224x3/1000/1281167", "train")           # made when they are asked for
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

import numpy as np

from convjax.data.checks import check_memory
from convjax.data.dataset import Dataset
from convjax.data.examples import Example
from convjax.data.splits import parse_split, part

NAME = "fake"
SPLITS = ("train", "test")


@dataclass(frozen=True)
class Fake:
    """Images of noise, each a function of its number; label i is `i % len(classes)`.

    shape: height, width and channels.
    classes: their names, "0", "1", ...
    split: "train" or "test", which differ.
    numbers: which images there are.
    """

    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    split: str
    numbers: range

    @property
    def labels(self) -> np.ndarray:
        """All labels, int32 `[N]`."""
        numbers = np.arange(self.numbers.start, self.numbers.stop, dtype=np.int32)
        return numbers % np.int32(len(self.classes))

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Example:
        number = self.numbers[index]
        height, width, channels = self.shape
        size = height * width * channels
        # Neighbours begin at far places of one strip of noise: no image costs a random number.
        begin = (number * 40503 + SPLITS.index(self.split) * 27011) % _SPAN
        image = _noise(size + _SPAN)[begin : begin + size].reshape(self.shape)
        return Example(image, number % len(self.classes), f"{self.split} image {number}")


def parse(name: str, split: str) -> Fake:
    """What `fake:HEIGHTxWIDTHxCHANNELS/CLASSES/TRAIN[/TEST]` asks for.

    TRAIN and TEST are numbers of images; a tenth of TRAIN, and at least 1, is the default of TEST.
    Raises ValueError for anything else.

    >>> images = parse("fake:224x224x3/1000/1281167/50000", "test[:10%]")
    >>> len(images), len(images.classes), images[3].image.shape
    (5000, 1000, (224, 224, 3))
    """
    match = _SYNTAX.fullmatch(name)
    if match is None:
        raise ValueError(
            f"data set {name!r}: write fake:HEIGHTxWIDTHxCHANNELS/CLASSES/IMAGES, "
            "such as fake:224x224x3/1000/1281167"
        )
    height, width, channels, classes, train = (int(number) for number in match.groups()[:5])
    test = int(match[6] or max(train // 10, 1))
    base, start, stop = parse_split(split, SPLITS)
    size = train if base == "train" else test
    chosen = range(size)[part(start, stop, size)]
    return Fake((height, width, channels), tuple(map(str, range(classes))), base, chosen)


def read(images: Fake) -> Dataset:
    """All of the images in memory. Raises ValueError where the machine has not as much."""
    shape = (len(images), *images.shape)
    check_memory(shape, f"{NAME} images", "stream them")
    pixels = np.empty(shape, np.uint8)
    for index in range(len(images)):
        pixels[index] = images[index].image
    return Dataset(pixels, images.labels, images.classes)


_NUMBER = r"([1-9]\d{0,8})"
_CLASSES = r"([1-9]\d{0,5})"  # Each has a name.
_SYNTAX = re.compile(rf"{NAME}:{_NUMBER}x{_NUMBER}x{_NUMBER}/{_CLASSES}/{_NUMBER}(?:/{_NUMBER})?")
_SPAN = 1 << 16  # places at which an image may begin, and so the number of different ones


@functools.lru_cache(maxsize=2)
def _noise(size: int) -> np.ndarray:
    words = np.random.Philox(key=0).random_raw(-(-size // 8))
    noise = words.astype("<u8").view(np.uint8)[:size]
    noise.flags.writeable = False
    return noise
