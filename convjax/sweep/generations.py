"""A population while it trains: steps, evaluations at which it evolves, checkpoints, and its end.

with Generations(group, levers, log, config, ...) as generations:
    result = generations.run()              # to the end of the plan, from the last checkpoint on
"""

from __future__ import annotations

import contextlib
import math
import shutil
import sys
import time
from typing import Any, Self, TextIO

import jax
import numpy as np
from tqdm import tqdm

from convjax import durable, runlog, tree
from convjax.beginning import begin
from convjax.checkpoint import Checkpoints
from convjax.config import Experiment, UserError, digest, to_dict
from convjax.interrupts import Interrupted, Interrupts
from convjax.keeper import Keeper, Kept
from convjax.layer import fold
from convjax.runlog import RunLog, line_of, write_json
from convjax.sitting import Diverged, Sitting, watch_of
from convjax.sweep.evolution import first
from convjax.sweep.group import Group
from convjax.sweep.levers import Levers
from convjax.sweep.lineage import best_of, lineage, table
from convjax.sweep.lockstep import Places
from convjax.sweep.objective import Objective
from convjax.sweep.space import resolve
from convjax.training.feed import Order
from convjax.training.metrics import Metrics, means
from convjax.training.state import TrainState


class Generations:
    """The members of a population and what becomes of them; use it in a `with`.

    group: of the middle of all that is varied. log: the files of the population.
    config: what the members share. every: steps between two generations.
    begun: when this began, by `time.perf_counter`. out: as in `population.launch`.
    """

    def __init__(
        self,
        group: Group,
        levers: Levers,
        log: RunLog,
        config: Experiment,
        *,
        members: int,
        every: int,
        objective: Objective,
        signals: Interrupts,
        begun: float,
        out: TextIO | None = None,
    ):
        self._group, self._levers, self._log, self._config = group, levers, log, config
        self._members, self._every, self._objective = members, every, objective
        self._signals, self._begun, self._out = signals, begun, out or sys.stdout
        self._plan = group.experiment.plan
        self._sign = 1 if objective.direction == "max" else -1
        self._key = fold(jax.random.key(config.seed), "population")
        size, batch = group.experiment.train.size, self._plan.batch_size
        self._orders = [Order(config.seed + each, size, batch) for each in range(members)]
        self._step, self._owes, self._saved = 0, False, -1
        self._since = np.zeros((len(Metrics._fields), members))
        self._pending: list[Metrics] = []
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._checkpoints = self._open.enter_context(
            Checkpoints(
                self._log.checkpoints,
                keep=self._config.checkpoint.keep,
                config=digest(self._config),
                background=True,
            )
        )
        return self

    def __exit__(self, *exception: Any) -> None:
        self._open.__exit__(*exception)

    def run(self) -> dict[str, Any]:
        """Trains to the end of the plan; what came of it.

        Raises:
            Diverged: if all members have; Interrupted: once a signal has come.
        """
        self._begin()
        with self._signals.held():
            try:
                self._train()
                self._checkpoints.wait()
                return self._end()
            except Interrupted as error:
                self._save()
                self._checkpoints.wait()
                text = f"step {self._saved} of {self._plan.steps} is saved in {self._log.folder}"
                raise Interrupted(error.number, f"{text}; the same command goes on") from None

    # -- From the first step to the last -----------------------------------------------------------

    def _begin(self) -> None:
        """Has all members in their places, as of the newest checkpoint if there is one."""
        newest = self._checkpoints.newest()
        values = np.asarray(first(self._key, self._members, self._levers.ranges))
        # A checkpoint has all states: then one is enough to know their form.
        count = self._members if newest is None else 1
        states = [self._sitting(each, values[each]).first() for each in range(count)]
        states += states[:1] * (self._members - count)
        self._places = Places(self._group, self._levers, states, values)
        if newest is None:
            if self._log.record().get("saved"):
                raise UserError(
                    f"no good checkpoint is left in {self._checkpoints.folder} of a population "
                    f"that had saved some: bring one back, or move {self._log.folder} away"
                )
            self._log.cut(0)
            return
        content, extra = self._checkpoints.restore(self._places.content_spec(), newest)
        self._places.restore(content)
        self._step = self._saved = newest
        self._owes, self._since = extra["owes"], np.asarray(extra["since"])
        self._begun -= extra["seconds"]
        self._log.cut(newest, owes=self._owes)
        if self._log.lines < extra["lines"]:
            raise UserError(
                f"{self._log.metrics_file} has lost lines, without which nobody knows how the "
                "members came to be: bring it back, or give another --workdir"
            )
        self._tell(f"going on at step {newest} of {self._plan.steps} in {self._log.folder}")

    def _train(self) -> None:
        plan = self._plan
        shown = tqdm(total=plan.steps, initial=self._step, unit=" steps", disable=None)
        with shown as bar:
            while True:
                if self._owes:
                    self._generation()
                if self._is_due(plan.save_every) or self._is_due(self._every):
                    self._save()
                if self._step >= plan.steps:
                    return
                self._signals.check()
                self._checkpoints.check()
                which = np.stack([order.batch(self._step) for order in self._orders])
                self._pending.append(self._places.step(which))
                self._step += 1
                self._owes = self._is_due(self._every)
                # One step late: the devices have their next one before the host waits.
                self._count(all_but=0 if self._owes else 1)
                bar.update()

    def _is_due(self, every: int) -> bool:
        return bool(self._step) and (self._step % every == 0 or self._step == self._plan.steps)

    def _generation(self) -> None:
        """Judges all members, writes down how they are, and has the worst go on from the best."""
        split, _, average = self._objective.split.partition("_")
        with self._signals.released():
            found = self._places.judge(split, average=bool(average))
        results = [_means(found, each) for each in range(self._members)]
        diverged = self._places.bad_steps >= self._config.stop.bad_steps
        diverged |= ~np.isfinite([each["loss"] for each in results])
        scores = np.array([self._sign * each[self._objective.metric] for each in results])
        scores = np.where(diverged, np.nan, scores)
        if np.isnan(scores).all():
            raise Diverged(f"all {self._members} members have diverged: narrow --vary")
        before = self._places.values
        parents = np.arange(self._members)
        if self._step < self._plan.steps:
            key = jax.random.fold_in(self._key, self._step)
            parents = self._places.evolve(scores, key)
        for member in range(self._members):
            score = float(self._sign * scores[member])
            trained = _means(Metrics(*self._since), member)
            self._log.log(
                line_of(self._step, self._plan.epoch, self._objective.split, results[member])
                | {"member": member, "score": score}
                | {"parent": None if parents[member] == member else int(parents[member])}
                | {"numbers": self._levers.point(before[member])}
                | {f"train_{name}": trained[name] for name in ("loss", "accuracy")}
                | {"skipped": int(self._since[3, member]), "seconds": self._seconds()}
            )
        self._since[:] = 0
        self._owes = False
        self._write_table()
        self._tell_generation(scores, parents)

    def _end(self) -> dict[str, Any]:
        """Saves the best member as a run of its own, tested, and tells what came of it."""
        lines = self._log.metrics()
        last = [line for line in lines if line["step"] == self._plan.steps]
        best = best_of(last, self._sign)
        assert best is not None
        values, seed = self._places.values[best], self._config.seed + best
        folder = durable.unfinished_of(self._log.best)
        shutil.rmtree(folder, ignore_errors=True)
        log = RunLog(folder)
        member = self._sitting(best, values, log)
        log.create(to_dict(member.config))
        way, state = lineage(lines, best), self._places.state(best)
        with self._signals.released():
            finals = member.conclude(state, self._seconds())
        for part in way:
            line = next(
                each
                for each in lines
                if (each["step"], each["member"]) == (part["to"], part["member"])
            )
            log.log(line)
        told = {"objective": str(self._objective), "seed": seed, "parts": way}
        write_json(folder / "schedule.json", told)
        durable.sync_tree(folder)
        if self._log.best.exists():
            durable.remove_tree(self._log.best)
        folder.rename(self._log.best)
        durable.sync(self._log.folder)
        self._write_table()
        chosen = next(line for line in last if line["member"] == best)
        return {
            **{name: chosen[name] for name in ("member", "score", "numbers")},
            "final": finals["final"],
            "seconds": self._seconds(),
        }

    # -- What these are made of --------------------------------------------------------------------

    def _sitting(self, member: int, values: np.ndarray, log: RunLog | None = None) -> _Alone:
        """A member as a run of its own."""
        config = resolve(self._config, self._levers.point(values), self._config.seed + member)
        return _Alone(self._group, config, log or self._log, self._out, self._signals)

    def _count(self, all_but: int) -> None:
        """Waits for the metrics of steps, and adds them up in double precision."""
        while len(self._pending) > all_but:
            self._since += np.stack(jax.device_get(self._pending.pop(0))).astype(float)

    def _save(self) -> None:
        """Saves all members, once what is known of their steps is on the disk."""
        self._count(all_but=0)
        if self._saved == self._step:
            return
        self._log.sync()
        extra = {
            "owes": self._owes,
            "since": self._since.tolist(),
            "seconds": self._seconds(),
            "lines": self._log.lines,
        }
        first_one = self._saved < 0
        self._checkpoints.save(self._step, self._places.content(), extra)
        self._saved = self._step
        if first_one:
            self._checkpoints.wait()
            self._log.note(saved=True)

    def _seconds(self) -> float:
        return time.perf_counter() - self._begun

    def _write_table(self) -> None:
        text = table(self._log.metrics(), self._config.seed, str(self._objective))
        durable.replace(self._log.folder / "results.csv", text.encode())

    def _tell_generation(self, scores: np.ndarray, parents: np.ndarray) -> None:
        best = int(np.nanargmax(scores))
        replaced = int((parents != np.arange(self._members)).sum())
        diverged = int(np.isnan(scores).sum())
        self._tell(
            f"epoch {self._step / self._plan.epoch:g}: {self._objective} "
            f"{self._sign * scores[best]:.4f} of member {best}, "
            f"{self._sign * np.nanmean(scores):.4f} on average, "
            f"{replaced} go on from others"
            + (f", {diverged} diverged" if diverged else "")
            + f", {self._seconds():.1f} s"
        )

    def _tell(self, text: str) -> None:
        tqdm.write(text, file=self._out)


class _Alone(Sitting):
    """A member as a run of its own: how it begins, and its folder at the end."""

    def __init__(
        self, group: Group, config: Experiment, log: RunLog, out: TextIO, signals: Interrupts
    ):
        experiment = group.experiment_of(config)
        super().__init__(experiment, log, out, time.perf_counter(), signals, group.pixels)
        numbers = group.knobs(experiment).numbers
        self.judge.step = lambda model, batch: group.judge(model, batch, numbers)

    def first(self) -> TrainState:
        """The state before the first step."""
        return self._fresh(self.drawn())

    def conclude(self, state: TrainState, seconds: float) -> dict[str, Any]:
        """Leaves what a finished run leaves, tested; the results."""
        self.start -= seconds
        begin(self.log, self.experiment, self.pixels, Kept())
        steps = self.plan.steps
        with Keeper(self.log, self.config, steps) as keeper:
            keeper.save(state, Kept(steps, seconds, best=self.judge.best))
            keeper.wait()
        finals = self.judge.conclude(state)
        of_model = tree.digest({"params": state.params, "state": state.state})
        results = {"skipped": int(watch_of(state).skipped), **finals, "digest": of_model}
        self.log.note(status="finished", end=runlog.now(), seconds=self.seconds(), **results)
        return finals


def _means(metrics: Metrics, member: int) -> dict[str, Any]:
    loss, correct, count, _ = (float(each[member]) for each in metrics)
    found = means(Metrics(loss, int(correct), int(count)))
    return found if math.isfinite(loss) else found | {"loss": math.nan}
