"""What an augmentation is, and how several become one.

    change = augment(crop(4), flip(), rand_augment(2, 9))
    images = change(key, images)                # inside the compiled step, on any device

Every image has random numbers of its own: the key with the image's number folded in, then the
name of the part. All parts draw at once, as a compiled draw costs half a second of compilation.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from convjax.augment.arguments import Number, along, batch, is_key, probability
from convjax.ops.arguments import describe


class Draw(NamedTuple):
    """What a batch is changed by: random keys and, for what asks for it, which images these are.

        images = change(Draw(step_key, run_key, numbers, epoch), images)

    key: one for the batch, or one an image, `[batch]`; another one in every step.
    run: a key that stays the same for the whole run.
    numbers: the number of each image in its data set, whole numbers `[batch]`.
    epoch: a whole number from 0; it may be traced.

    Only `alternating_flip` asks for the last three.
    """

    key: Array
    run: Array | None = None
    numbers: ArrayLike | None = None
    epoch: ArrayLike | None = None


# (draw, with a key an image; uniform numbers float32 [batch, draws]; images) -> images
Apply = Callable[[Draw, Array, Array], Array]


@dataclass(frozen=True)
class Augmentation:
    """A random change of a batch of images: call it as `augmentation(key, images)`.

    name: what its randomness is folded with.
    draws: how many uniform numbers over [0, 1) each image needs.
    apply: `(draw, uniform, images) -> images`. uniform: float32 `[batch, draws]`. draw: what the
        batch is changed by, where `draw.key` is a key an image, for what needs more numbers.

    An augmentation of your own is one of these:

    >>> dim = Augmentation("dim", 1, lambda draw, uniform, images: images * along(uniform[:, 0]))
    >>> jax.jit(dim)(jax.random.key(0), jnp.ones((8, 4, 4, 3))).shape
    (8, 4, 4, 3)
    """

    name: str
    draws: int
    apply: Apply

    def __call__(self, key: Array | Draw, images: ArrayLike) -> Array:
        """The changed images; key: one for the batch, one an image, `[batch]`, or a `Draw`."""
        return _run([self], key, images)


Part = Augmentation | Callable[[Array, Array], Array]


def augment(*parts: Part) -> Callable[[Array | Draw, ArrayLike], Array]:
    """One function `(key, images) -> images` of several, applied in order.

    images: `[batch, height, width, channels]`, of uint8, or floating (see each part).
    key: one for the batch; image i has `fold_in(key, i)`. Or one an image, `[batch]`: under
        `shard_map` and `pmap` fold in the number that an image has in the whole batch, and all
        ways to spread a batch give the same images. Or a `Draw`, which has either as its `key`.

    The numbers of a part are those of its image's key with its name folded in (`zlib.crc32`), a
    second part of that name is `flip2`, and so on: to add, move or remove a part changes the
    randomness of no part of another name, and a part alone gives what it gives as the first here.

    A function of your own, `(keys, images) -> images`, is a part too: it gets a key an image, and
    is named by its `__name__`.

    Raises:
        TypeError: if a part is no function, the key none of `jax.random.key`, or the images are
            integers other than uint8.
        ValueError: if the images have not four axes, or the keys are not one an image.

    >>> from convjax.augment import crop, flip
    >>> images = jnp.zeros((8, 32, 32, 3), jnp.uint8)
    >>> jax.jit(augment(crop(4), flip()))(jax.random.key(0), images).shape
    (8, 32, 32, 3)
    """
    made = [as_augmentation(part) for part in parts]

    def change(key: Array | Draw, images: ArrayLike) -> Array:
        return _run(made, key, images)

    return change


def sometimes(p: Number, *parts: Part) -> Augmentation:
    """Applies parts, in order, to an image with probability `p`; else leaves it as it was.

    The parts must keep the size. Follows `torchvision.transforms.RandomApply`. p may be traced.
    """
    made = [as_augmentation(part) for part in parts]
    probability("sometimes", p)

    def apply(draw: Draw, uniform: Array, images: Array) -> Array:
        changed = _apply(made, draw, images)
        if changed.shape != images.shape:
            raise ValueError(
                f"sometimes: its parts made {describe(changed)} of {describe(images)}, and not "
                "every image of a batch can have another size: take the resizing part out"
            )
        return jnp.where(along(uniform[:, 0] < p), changed, images)

    return Augmentation("sometimes", 1, apply)


def change_some(change: Callable[..., Array], mask: Array, x: Array, *values: Array) -> Array:
    """`change(x, *values)` of the images that the mask `[batch]` names; the others stay.

    For what costs much and few images want: an eighth of the batch at a time, until all are done.
    values: `[batch]`. The loop also keeps XLA from working out a changed pixel anew for each
    neighbour that is made of it.
    """
    size, count = -(-len(x) // 8), mask.sum()
    order = jnp.pad(jnp.argsort(~mask), (0, -len(x) % size))  # Those of the mask first.

    def few(i: Array, x: Array) -> Array:
        chosen = lax.dynamic_slice_in_dim(order, i * size, size)
        changed = change(x[chosen], *(value[chosen] for value in values))
        wanted = i * size + jnp.arange(size) < count
        # What is not wanted is written nowhere.
        return x.at[jnp.where(wanted, chosen, len(x))].set(changed, mode="drop")

    return lax.fori_loop(0, (count + size - 1) // size, few, x)


def as_augmentation(part: Part) -> Augmentation:
    """The part itself, or a plain function `(keys, images) -> images` as one."""
    if isinstance(part, Augmentation):
        return part
    if not callable(part):
        raise TypeError(
            f"a part of an augmentation is one, such as flip(), or a function (keys, images) -> "
            f"images, not {part!r} ({type(part).__name__})"
        )
    name = getattr(part, "__name__", type(part).__name__)
    return Augmentation(name, 0, lambda draw, uniform, images: part(draw.key, images))


def numbered(names: Sequence[str]) -> Iterator[str]:
    """The names, each further one of a kind with its number.

    >>> list(numbered(["crop", "flip", "flip"]))
    ['crop', 'flip', 'flip2']
    """
    seen: dict[str, int] = {}
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        yield name if seen[name] == 1 else f"{name}{seen[name]}"


def _run(parts: Sequence[Augmentation], key: Array | Draw, images: ArrayLike) -> Array:
    images = batch("augment", images)
    draw = key if isinstance(key, Draw) else Draw(key)
    return _apply(parts, draw._replace(key=_key_each(draw.key, images)), images)


def _key_each(key: Array, images: Array) -> Array:
    """A key for each of the images, `[batch]`."""
    if not is_key(key):
        raise TypeError(
            f"augment needs a key of jax.random.key, got {type(key).__name__}: "
            "for an old one, jax.random.wrap_key_data(key)"
        )
    if key.shape == ():
        return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(images)))
    if key.shape != images.shape[:1]:
        many = f"{len(key)}" if key.ndim == 1 else f"keys of shape {key.shape}"
        raise ValueError(
            f"augment takes one key, or one an image, got {many} for {describe(images)}: "
            "give jax.random.key(0), say, and each image gets one of its own"
        )
    return key


def _apply(parts: Sequence[Augmentation], draw: Draw, images: Array) -> Array:
    """Applies the parts in order, to images of a key each."""
    if not parts:
        return images
    names = [zlib.crc32(name.encode()) for name in numbered([part.name for part in parts])]
    fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
    own = fold(draw.key, np.array(names, np.uint32))  # [batch, parts]
    # The first numbers of a key are the same however many are drawn, with JAX's own kind of keys.
    most = max(part.draws for part in parts)
    uniform = jnp.zeros((*own.shape, 0), jnp.float32)
    if most:
        uniform = jax.vmap(jax.vmap(lambda key: jax.random.uniform(key, (most,))))(own)
    for i, part in enumerate(parts):
        with jax.named_scope(part.name):
            images = part.apply(draw._replace(key=own[:, i]), uniform[:, i, : part.draws], images)
    return images
