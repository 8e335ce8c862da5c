"""Make the bundled data set from the four IDX files of Fashion-MNIST.

    python -m convjax.data.make_fashion_mini SOURCE_FOLDER [--out FOLDER]

It takes the first 1,000 training and the first 200 test images of each class and keeps their order.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from convjax.data import mnist
from convjax.data.idx import read_idx, write_idx

PER_CLASS = {"train": 1000, "test": 200}


def first_of_each_class(labels: np.ndarray, count: int) -> np.ndarray:
    """The positions of the first `count` labels of each class, in rising order.

    >>> first_of_each_class(np.array([1, 0, 1, 1, 0]), count=2)
    array([0, 1, 2, 4])

    Raises ValueError where a class has fewer.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    if len(sizes) == 0 or sizes.min() < count:
        smallest = dict(zip(classes.tolist(), sizes.tolist(), strict=True))
        raise ValueError(f"expected at least {count} of each class, found {smallest}")
    return np.sort(np.concatenate([np.flatnonzero(labels == c)[:count] for c in classes]))


def make(source: Path, out: Path) -> None:
    """Write the bundled set's four files into `out`, from those in `source`."""
    member = mnist.FAMILY["fashion_mnist"]
    out.mkdir(parents=True, exist_ok=True)
    for split, count in PER_CLASS.items():
        if (files := mnist.find(member, split, [source])) is None:
            raise FileNotFoundError(f"{source} has not both of {' and '.join(member.files(split))}")
        images, labels = map(read_idx, files)
        chosen = first_of_each_class(labels, count)
        for name, array in zip(member.files(split), (images, labels), strict=True):
            write_idx(out / f"{name}.gz", array[chosen])


def main() -> None:
    """Make the bundled data set as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("source", type=Path, help="the folder with the files of Fashion-MNIST")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "fashion_mini")
    args = parser.parse_args()
    try:
        make(args.source, args.out)
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
