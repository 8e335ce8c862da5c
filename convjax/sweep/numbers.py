"""Which numbers of a config a compiled step can take as arrays, so that trials share a program.

    lifted = liftable(config, images)           # {"model.args.dropout_rate", "augment.mix(0)"}
    structure(config, lifted) == structure(other, liftable(other, images))      # one program
    net = network(config, images, {"model.args.dropout_rate": rate, "augment.mix(0)": alpha})

Trials of one structure train in one program, each with its own seed, its own
`convjax.training.optimizer.Hyper`, and its own values of the lifted numbers. What is left of each
key of a config in its structure:

| key | in the structure |
|---|---|
| name, seed, stop.patience, .metric, .min_delta | nothing: no program knows them |
| checkpoint.keep, .best | nothing |
| optimizer.learning_rate, .weight_decay, loss.label_smoothing | nothing: in `Hyper` |
| optimizer.args | floats by name alone, in `Hyper`; whole numbers, bools and texts as they are |
| optimizer.layer_decay, .sam_rho | whether it is 1, and whether it is None; else in `Hyper` |
| optimizer.rules | pattern, freeze and until_epoch of each; the factors are in `Hyper` |
| loss.args, .class_weights | names, and how many; the numbers are in `Hyper` |
| model.args, augment.parts, augment.mix | the lifted numbers by path alone; the rest as it is |
| all others | as they are: they decide on the program, the plan, or on what all trials are fed |
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from convjax import calls, models
from convjax.assemble import mix_labels, with_norms
from convjax.augment import named
from convjax.augment.compose import Draw
from convjax.config import Augment, Experiment, to_dict
from convjax.layer import Context, Layer
from convjax.training.feed import Split
from convjax.training.rules import parse
from convjax.training.step import Change, Mix

Numbers = Mapping[str, Any]  # path -> float32 scalar, which may be traced


def numbers_of(config: Experiment) -> dict[str, float]:
    """The floating-point numbers of model and augmentation, by path: what may be liftable.

    Those of `Hyper` are none of them. A whole number is none either: `crop(4)` stays as it is, and
    so does the 1 of `mixup(1)`; write 1.0.

    >>> from convjax.config import Augment, Model
    >>> augment = Augment(("crop(4)", "random_erasing(0.25, scale=(0.02, 0.2))"), "mixup(0.2)")
    >>> for path, value in numbers_of(Experiment(model=Model(args={"dropout_rate": 0.3}),
    ...                                          augment=augment)).items():
    ...     print(path, value)
    model.args.dropout_rate 0.3
    augment.parts[1](0) 0.25
    augment.parts[1](scale)[0] 0.02
    augment.parts[1](scale)[1] 0.2
    augment.mix(0) 0.2

    Raises:
        ValueError: for an augmentation that is no call.
    """
    found = dict(_floats(config.model.args, _MODEL))
    for prefix, text in _texts(config).items():
        found |= {f"{prefix}{place}": value for place, value in calls.floats(text).items()}
    return found


def liftable(config: Experiment, images: Split) -> frozenset[str]:
    """Those paths of `numbers_of(config)` whose numbers may be arrays, all of them at once.

    That is so where network or augmentation have the same operations on arrays and the same
    results in shape and dtype, under `jax.vmap` too, whether they are given the array or the Python
    number of this config. So it depends on the value: a model that leaves out a dropout of rate 0
    has another program there, and its 0 is not lifted. Nothing is computed.

    config: one that `convjax.assemble` takes. images: those that it is to be trained on.
    """
    return frozenset(numbers_of(config)) - refused(config, images).keys()


def structure(config: Experiment, lifted: Collection[str]) -> str:
    """A SHA-256 that configs share if one program and one plan serve them all.

    So they differ only in the seed, in numbers of `Hyper`, in lifted ones, and in what no program
    knows; see the table above.

    lifted: `liftable(config, images)`.

    >>> from convjax.config import Optimizer
    >>> of = lambda rate, seed: Experiment(seed=seed, optimizer=Optimizer(learning_rate=rate))
    >>> structure(of(0.1, 0), []) == structure(of(0.2, 1), [])
    True
    """
    values = to_dict(config)
    blanks = dict.fromkeys(lifted)
    optimizer, loss = values["optimizer"], values["loss"]
    for section, keys in (
        (values, ("name", "seed")),
        (values["stop"], ("patience", "metric", "min_delta")),
        (values["checkpoint"], ("keep", "best")),
        (optimizer, ("learning_rate", "weight_decay")),
        (loss, ("label_smoothing",)),
    ):
        for key in keys:
            del section[key]
    rules = [parse(text) for text in config.optimizer.rules]
    args = optimizer["args"].items()
    optimizer |= {
        "args": {key: value for key, value in args if type(value) is not float},
        "floats": sorted(key for key, value in args if type(value) is float),
        "layer_decay": config.optimizer.layer_decay == 1,
        "sam_rho": config.optimizer.sam_rho is None,
        "rules": [(rule.pattern, rule.frozen, rule.until_epoch) for rule in rules],
    }
    loss |= {"args": sorted(loss["args"]), "class_weights": len(loss["class_weights"])}
    values["model"]["args"] = _with(values["model"]["args"], _MODEL, blanks)
    for prefix, text in _texts(config).items():
        values["augment"][prefix] = calls.without(text, _places(prefix, blanks))
    del values["augment"]["parts"], values["augment"]["mix"]
    values["lifted"] = sorted(set(lifted))
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def network(config: Experiment, images: Split, numbers: Numbers) -> Layer:
    """The network of `convjax.assemble.network`, with these numbers in place of the config's.

    They decide on first parameters too, and on evaluation: `init` and every `apply` of a trial want
    its own. The config is one that `convjax.assemble` has checked.

    numbers: by paths of `liftable`; those of augmentations are passed over.
    """
    return _network(config, len(images.classes), numbers)


def augmentation(
    config: Experiment, images: Split, numbers: Numbers
) -> tuple[Change | None, Mix | None]:
    """What `convjax.assemble.augmentation` makes, with these numbers in place of the config's.

    numbers: by paths of `liftable`; those of the model are passed over.
    """
    return _augmentation(config, len(images.classes), numbers)


def refused(config: Experiment, images: Split) -> dict[str, str]:
    """Why each of the other paths of `numbers_of(config)` is not `liftable`."""
    found: dict[str, str] = {}
    for kind, part in _parts(config):
        found |= _refused(kind, part, images)
    return found


# -- Where numbers stand ---------------------------------------------------------------------------


_MODEL, _PARTS, _MIX = "model.args", "augment.parts", "augment.mix"


def _floats(value: Any, path: str) -> Iterator[tuple[str, float]]:
    """The floating-point numbers among keywords, however deep."""
    if type(value) is float:
        yield path, value
    for inner, each in _inside(value, path):
        yield from _floats(each, inner)


def _with(value: Any, path: str, numbers: Numbers) -> Any:
    """The keywords with some numbers in place of others."""
    if isinstance(value, Mapping):
        inside = zip(value, _inside(value, path))
        return {key: _with(each, inner, numbers) for key, (inner, each) in inside}
    if isinstance(value, list | tuple):
        return type(value)(_with(each, inner, numbers) for inner, each in _inside(value, path))
    return numbers[path] if type(value) is float and path in numbers else value


def _inside(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((f"{path}.{key}", each) for key, each in value.items())
    elif isinstance(value, list | tuple):
        yield from ((f"{path}[{index}]", each) for index, each in enumerate(value))


def _texts(config: Experiment) -> dict[str, str]:
    """The calls of the augmentations, by path."""
    texts = {f"{_PARTS}[{number}]": text for number, text in enumerate(config.augment.parts)}
    return texts if config.augment.mix is None else texts | {_MIX: config.augment.mix}


def _places(prefix: str, numbers: Numbers) -> dict[str, Any]:
    """What stands in one call, by place."""
    return {
        path.removeprefix(prefix): number
        for path, number in numbers.items()
        if path.startswith(f"{prefix}(")
    }


def _network(config: Experiment, classes: int, numbers: Numbers) -> Layer:
    args = _with(config.model.args, _MODEL, numbers)
    return with_norms(models.create(config.model.name, classes=classes, **args), config.norm)


def _augmentation(
    config: Experiment, classes: int, numbers: Numbers
) -> tuple[Change | None, Mix | None]:
    parts = config.augment.parts
    given = [_places(f"{_PARTS}[{number}]", numbers) for number in range(len(parts))]
    mixed = named.mix_of(config.augment.mix, _places(_MIX, numbers))
    return named.parts_of(parts, given), None if mixed is None else mix_labels(mixed, classes)


# -- Whether a program stays the same --------------------------------------------------------------

Operations = tuple[Counter[tuple[str, str]], Any]


@dataclass(frozen=True)
class _Program:
    """What one kind of numbers goes into, on two images; equal where only blanked ones differ."""

    kind: str
    shape: tuple[int, ...]
    classes: int
    structure: str
    config: Experiment = field(compare=False)

    def run(self, numbers: Numbers, key: Array, labels: Array, pixels: Array) -> Any:
        """All that it computes, with these numbers in place of the config's."""
        x = pixels.astype(self.config.precision)
        if self.kind == _MODEL:
            return self._applied(numbers, key, x)
        change, mix = _augmentation(self.config, self.classes, numbers)
        if change is not None:
            return change(Draw(key, key, labels, labels[0]), pixels)
        return None if mix is None else mix(key, x, labels)

    def _applied(self, numbers: Numbers, key: Array, x: Array) -> Any:
        net = _network(self.config, self.classes, numbers)
        params, state = net.init(key, x.astype(jnp.float32))
        trained = net.apply(params, state, x, Context(key, train=True))
        return params, state, trained, net.apply(params, state, x, Context())

    def gradient(self, numbers: Numbers, key: Array, labels: Array, pixels: Array) -> Any:
        """What training takes beside: the gradient of a network."""
        net, x = _network(self.config, self.classes, numbers), pixels.astype(self.config.precision)
        params, state = net.init(key, x.astype(jnp.float32))

        def total(params: Any) -> Array:
            logits, _ = net.apply(params, state, x, Context(key, train=True))
            return logits.astype(jnp.float32).sum()

        return jax.grad(total)(params)

    def arguments(self) -> tuple[Any, ...]:
        """Their shapes, of a run after its numbers."""
        labels = jax.ShapeDtypeStruct((2,), jnp.int32)
        pixels = jax.ShapeDtypeStruct((2, *self.shape), jnp.uint8)
        return jax.eval_shape(lambda: jax.random.key(0)), labels, pixels


def _parts(config: Experiment) -> Iterator[tuple[str, Experiment]]:
    """The kinds of numbers, and no more of the config than they go together with."""
    precision, augment = config.precision, config.augment
    yield _MODEL, Experiment(precision=precision, model=config.model, norm=config.norm)
    yield _PARTS, Experiment(augment=Augment(parts=augment.parts))
    yield _MIX, Experiment(precision=precision, augment=Augment(mix=augment.mix))


def _refused(kind: str, config: Experiment, images: Split) -> dict[str, str]:
    def program(paths: Sequence[str]) -> _Program:
        shape, classes = tuple(images.shape), len(images.classes)
        return _Program(kind, shape, classes, structure(config, paths), config)

    def reason(paths: tuple[str, ...]) -> str | None:
        lifted = _lifted(program(paths), paths)
        if isinstance(lifted, str):
            return lifted
        return None if lifted == _usual(program(())) else "as an array it makes another program"

    paths = tuple(numbers_of(config))
    if not paths or reason(paths) is None:
        return {}
    # One after the other, so that one that is refused spoils none of the rest.
    found: dict[str, str] = {}
    taken: tuple[str, ...] = ()
    for path in paths:
        if why := reason((*taken, path)):
            found[path] = why
        else:
            taken += (path,)
    return found


@functools.lru_cache(1024)
def _usual(program: _Program) -> Operations:
    """The operations with the numbers of the config."""
    return _operations(program.run, (), program.arguments())


@functools.lru_cache(1024)
def _lifted(program: _Program, paths: tuple[str, ...]) -> Operations | str:
    """The operations with arrays for these numbers, or the error that they are."""
    arguments = program.arguments()
    many = {path: jax.ShapeDtypeStruct((2,), jnp.float32) for path in paths}
    axes = (0, *[None] * len(arguments))
    try:
        jax.eval_shape(jax.vmap(program.run, axes), many, *arguments)
        if program.kind == _MODEL:
            jax.eval_shape(jax.vmap(program.gradient, axes), many, *arguments)
        return _operations(program.run, paths, arguments)
    # A function may make anything of what is no number to it: then it is given one.
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _operations(run: Callable[..., Any], paths: Sequence[str], arguments: Sequence[Any]) -> Any:
    """What is computed of arrays with arrays for these numbers, and the form of the results.

    Arithmetic of scalars, and their spreading over arrays, is left out: of a Python number it is
    done before the program is made.
    """
    numbers = {path: jax.ShapeDtypeStruct((), jnp.float32) for path in paths}
    traced, results = jax.make_jaxpr(run, return_shape=True)(numbers, *arguments)
    found: Counter[tuple[str, str]] = Counter()

    def count(jaxpr: Any) -> None:
        for equation in jaxpr.eqns:
            inner = list(_jaxprs(equation.params))
            for each in inner:
                count(each)
            name, made = equation.primitive.name, [each.aval for each in equation.outvars]
            scalar = all(not each.shape and not _is_key(each) for each in made)
            if not (scalar or name in _SPREADING or (inner and name in _CALLS)):
                found[name, " ".join(f"{each.dtype}{list(each.shape)}" for each in made)] += 1

    count(traced.jaxpr)
    return found, jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), results)


def _is_key(aval: Any) -> bool:
    return jnp.issubdtype(aval.dtype, jax.dtypes.prng_key)


def _jaxprs(params: Mapping[str, Any]) -> Iterator[Any]:
    """The programs that an operation holds."""
    for value in params.values():
        for each in value if isinstance(value, list | tuple) else (value,):
            inner = getattr(each, "jaxpr", each)
            if hasattr(inner, "eqns"):
                yield inner


# They hold a scalar in the form of an array, or in another dtype.
_SPREADING = ("broadcast_in_dim", "convert_element_type", "copy", "reshape", "squeeze")
# They are what is within them.
_CALLS = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call")
