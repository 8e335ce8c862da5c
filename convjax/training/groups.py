"""Parameters in groups, each with a learning rate and a weight decay of its own, or frozen.

    groups = assign(params, [parse("stem/*: freeze"), parse("head/*: learning_rate=10")])
    groups["head/kernel"]                            # Group(rule=1, depth=0, frozen=False)

Of the rules that match a path the first holds, alone; what matches none is as all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from convjax import tree
from convjax.config import ConfigError
from convjax.layer import Params
from convjax.training.rules import Rule


class Factors(NamedTuple):
    """The factors of all rules, float32 `[rules]` each."""

    learning_rate: Array
    weight_decay: Array


class Group(NamedTuple):
    """What is trained alike.

    rule: which rule holds; None if none does.
    depth: how many layers lie between it and the end, where that matters; else 0.
    """

    rule: int | None = None
    depth: int = 0
    frozen: bool = False

    @property
    def label(self) -> str:
        """The name of the group in the state of the optimizer."""
        rule = "rest" if self.rule is None else f"rule{self.rule + 1}"
        return f"{rule}-{self.depth}" if self.depth else rule


def labels(params: Params, of: Callable[[str, Any], Any]) -> Any:
    """A tree of the same structure, whose leaves are `of(path, leaf)`."""
    found = [of(path, leaf) for path, leaf in tree.leaves(params).items()]
    return jax.tree.unflatten(jax.tree.structure(params), found)


def factors_of(rules: Sequence[Rule]) -> Factors:
    """The numbers of the rules as arrays."""
    rates, decays = [rule.learning_rate for rule in rules], [rule.weight_decay for rule in rules]
    return Factors(jnp.asarray(rates, jnp.float32), jnp.asarray(decays, jnp.float32))


def assign(
    params: Params, rules: Sequence[Rule], depths: Mapping[str, int] = {}
) -> dict[str, Group]:
    """The group of each parameter, by path.

    depths: how many layers lie between each parameter and the end, by path.
    """
    found = {}
    for path in tree.leaves(params):
        first = (n for n, rule in enumerate(rules) if tree.matches(path, rule.pattern))
        number = next(first, None)
        frozen = number is not None and rules[number].frozen
        found[path] = Group(number, 0 if frozen else depths.get(path, 0), frozen)
    return found


def by_group(
    make: Callable[[Group], optax.GradientTransformation],
    rules: Sequence[Rule],
    depths: Mapping[str, int] = {},
) -> optax.GradientTransformationExtraArgs:
    """Trains each group by the transformation that `make` gives it.

    Where all are in one group, this is `make` of it and nothing else.
    """

    def whole(params: Any) -> optax.GradientTransformationExtraArgs:
        of_path = assign(params, rules, depths)
        groups = {group.label: group for group in of_path.values()}
        if len(groups) == 1:
            return optax.with_extra_args_support(make(*groups.values()))
        return optax.partition(
            {label: make(group) for label, group in groups.items()},
            labels(params, lambda path, _: of_path[path].label),
        )

    def update(updates: Any, state: Any, params: Any = None, **more: Any) -> tuple[Any, Any]:
        return whole(updates).update(updates, state, params, **more)

    return optax.GradientTransformationExtraArgs(lambda params: whole(params).init(params), update)


def all_but_frozen(
    inner: optax.GradientTransformation, rules: Sequence[Rule]
) -> optax.GradientTransformationExtraArgs:
    """The same of what no rule freezes; the rest keeps its value to the bit, and takes no memory.

    For `inner` frozen parameters and their gradients do not exist.
    """

    def chosen(params: Params, frozen: bool) -> Any:
        groups = assign(params, rules)
        return labels(params, lambda path, _: groups[path].frozen == frozen)

    if not any(rule.frozen for rule in rules):
        return optax.with_extra_args_support(inner)
    return optax.chain(
        optax.masked(inner, functools.partial(chosen, frozen=False)),
        # 0.0 in place of -0.0 would make a parameter of -0.0 a 0.0.
        optax.masked(_constant(-0.0), functools.partial(chosen, frozen=True)),
    )


def check_patterns(params: Params, patterns: Sequence[str], where: str) -> None:
    """Raises ConfigError if one of the patterns, those of the config's key `where`, does nothing.

    It does nothing where it matches no parameter that those before it do not match.
    """
    rules = [(pattern, True) for pattern in patterns]
    if not all(tree.matches(path, patterns) for path in tree.leaves(params)):
        rules.append(("*", False))
    try:
        tree.match(params, rules)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


def check_rules(params: Params, rules: Sequence[Rule], decays: Mapping[str, bool]) -> None:
    """Raises ConfigError if a rule does nothing, or if all parameters are frozen.

    decays: whether each parameter decays, by path.
    """
    held = [(rule.pattern, number) for number, rule in enumerate(rules)]
    taken = {group.rule for group in assign(params, rules).values()}
    try:
        tree.match(params, [*held, ("*", None)] if None in taken else held)
    except ValueError as error:
        raise ConfigError(f"config.optimizer.rules: {error}") from None
    groups = assign(params, rules)
    for number, rule in enumerate(rules):
        its = [path for path, group in groups.items() if group.rule == number]
        if rule.weight_decay not in (0, 1) and not any(decays[path] for path in its):
            raise ConfigError(
                f"config.optimizer.rules has {rule.text!r}: none of its parameters decays; add "
                f"{rule.pattern!r} to config.optimizer.decay"
            )
    if all(group.frozen for group in groups.values()):
        raise ConfigError("config.optimizer.rules freeze every parameter: leave some to be trained")


def table(
    params: Params,
    rules: Sequence[Rule],
    decays: Mapping[str, bool],
    *,
    learning_rate: float,
    weight_decay: float,
    layer_decay: float = 1.0,
    depths: Mapping[str, int] = {},
) -> str:
    """Every parameter once: how many of each group there are, and how they are trained.

    learning_rate: at the peak of the schedule.
    """
    rows: dict[tuple[Any, ...], list[str]] = {}
    for path, group in assign(params, rules, depths).items():
        rows.setdefault((group, decays[path] and not group.frozen), []).append(path)
    leaves = tree.leaves(params)
    cells: list[tuple[str, ...]] = [
        ("trained by", "tensors", "parameters", "learning rate", "weight decay")
    ]
    for (group, decayed), paths in sorted(rows.items(), key=lambda row: _place(*row[0])):
        rule = Rule("*") if group.rule is None else rules[group.rule]
        rate = learning_rate * rule.learning_rate * layer_decay**group.depth
        decay = weight_decay * rule.weight_decay if decayed else 0
        said = "no rule" if group.rule is None else rule.text
        if group.depth:
            said += f", {group.depth} layer{'s' * (group.depth > 1)} before the last"
        numbers = ("frozen", "") if group.frozen else (f"{rate:.3g}", f"{decay:.3g}")
        size = tree.count([leaves[path] for path in paths])
        cells.append((said, f"{len(paths):,}", f"{size:,}", *numbers))
    cells.append(("all", f"{len(leaves):,}", f"{tree.count(params):,}", "", ""))
    widths = [max(len(line[column]) for line in cells) for column in range(5)]
    return "\n".join(
        "  ".join(
            text.rjust(width) if column else text.ljust(width)
            for column, (text, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in cells
    )


def _constant(value: float) -> optax.GradientTransformation:
    return optax.stateless(
        lambda updates, _: jax.tree.map(lambda x: jnp.full_like(x, value), updates)
    )


def _place(group: Group, decays: bool) -> tuple[int, int, bool]:
    """Where a row of the table stands: by rule, then from the first layer to the last."""
    return (1000 if group.rule is None else group.rule, -group.depth, not decays)
