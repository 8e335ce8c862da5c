"""Who trains the trials of a sweep: processes of this machine, or jobs of a cluster.

engine = Engine("processes", workers=4)
engine.check(config)                        # UserError for what cannot be
with engine.start(store, sweep, config) as pool:
    pool.look_after()                       # now and again, as long as trials wait or run
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from convjax.config import Experiment, UserError, to_dict
from convjax.flags import literal
from convjax.names import nearest
from convjax.sweep.processes import Begun, Workers, begun, cores, gpus, has_accelerators, shares
from convjax.sweep.store import Store

CLUSTERS = ("ray", "slurm")
NAMES = ("auto", "vectorised", "processes", *CLUSTERS)
_GROUPING = ("auto", "vectorised")
_GROUP = 8  # trials that wait, from which a group for one program can be taken


def options(texts: Sequence[str]) -> dict[str, Any]:
    """Options of Slurm by name, of texts KEY=VALUE; UserError for another text.

    >>> options(["partition=gpu", "time=120"])
    {'partition': 'gpu', 'time': 120}
    """
    for text in texts:
        if not re.fullmatch(r"\w+=.+", text, re.DOTALL):
            raise UserError(f"--slurm={text}: give --slurm=KEY=VALUE, such as partition=gpu")
    return {key: literal(value) for key, _, value in (text.partition("=") for text in texts)}


class Pool(Protocol):
    """Workers, wherever they are."""

    def look_after(self) -> None:
        """Starts what is missing, notes what died and why, and ends what hangs."""
        ...


@dataclass(frozen=True)
class Engine:
    """Which one trains.

    name: one of `NAMES`. vectorised has one worker with all cores and GPUs, unless more are asked
        for; auto likewise where there are accelerators, and else one for each core; processes as
        many as there are GPUs, or one. vectorised=8 trains up to 8 trials at once in a program,
        where vectorised and auto measure how many pay.
    hang_after: seconds without a new line of metrics after which a trial is taken to hang.
    address: of a Ray cluster that is there. slurm: options of its jobs, such as partition.
    cpus, gpus: of each trial on a cluster.
    """

    name: str = "auto"
    workers: int | None = None
    hang_after: float = 3600.0
    address: str | None = None
    slurm: Mapping[str, Any] = field(default_factory=dict)
    cpus: int = 1
    gpus: int = 0

    def check(self) -> None:
        """Raises UserError for an engine that there is not, or that has not what it needs."""
        if self.name == "cluster":
            raise UserError("--engine=cluster: give --engine=ray or --engine=slurm")
        if self.kind not in NAMES:
            raise UserError(f"--engine={self.name}: {nearest(self.name, NAMES)}")
        if self.name != self.kind and not re.fullmatch(r"vectorised=[1-9]\d*", self.name):
            step = "give a number" if self.kind == "vectorised" else "only vectorised takes one"
            raise UserError(f"--engine={self.name}: {step}, as --engine=vectorised=8")
        if self.name in CLUSTERS and self.workers is None:
            raise UserError(f"--engine={self.name}: give --workers=N, how many trials at once")
        if self.workers is not None and self.workers < 1:
            raise UserError(f"--workers={self.workers}: give 1 or more")
        if not self.hang_after >= 1:
            raise UserError(f"--hang_after={self.hang_after:g}: give 1 second or more")
        if (self.cpus, self.gpus) != (1, 0) and self.is_here:
            raise UserError("--cpus and --gpus are for ray and slurm: give --workers=N")
        if self.address is not None and self.name != "ray":
            raise UserError(
                f"--address is that of a Ray cluster: give --engine=ray, not {self.name}"
            )
        if self.slurm and self.name != "slurm":
            raise UserError(f"--slurm is for the jobs of --engine=slurm, not of {self.name}")

    @property
    def kind(self) -> str:
        """The name without a number of trials at once."""
        return self.name.partition("=")[0]

    @property
    def is_here(self) -> bool:
        """Whether it works on this machine."""
        return self.name not in CLUSTERS

    @property
    def ahead(self) -> int:
        """How many trials are to wait, so that each worker finds one, or a group of them."""
        if self.kind not in _GROUPING:
            return self.count("jit")
        places = int(self.name.partition("=")[2] or _GROUP)
        return max(self.count("jit"), places)

    def begin(self, config: Experiment) -> AbstractContextManager[list[Begun]]:
        """Workers of this machine's CPU that get ready for trials like this; for `start`."""
        # Those that have taken the memory of a GPU would leave none to what is tried meanwhile.
        if not self.is_here or has_accelerators():
            return contextlib.nullcontext([])
        return begun(self.shares(config.parallel), self.name, to_dict(config))

    def start(
        self,
        store: Store,
        sweep: int,
        config: Experiment,
        told: Callable[[str], None] = print,
        ready: list[Begun] | None = None,
    ) -> AbstractContextManager[Pool]:
        """Workers for a sweep of this config, to be used in a `with`, after which none is left.

        told: is told what workers of this machine print. ready: what `begin` gives.

        Raises: UserError if a library or a cluster is missing.
        """
        count = self.count(config.parallel)
        if self.is_here:
            return Workers(
                store,
                sweep,
                count,
                self.hang_after,
                self.name,
                all_gpus=self._takes_all(config.parallel),
                told=told,
                ready=ready,
            )
        from convjax.sweep import cluster

        return cluster.make(
            self.name,
            store,
            sweep,
            count,
            hang_after=self.hang_after,
            cpus=self.cpus,
            gpus=self.gpus,
            address=self.address,
            slurm=self.slurm,
        )

    def shares(self, parallel: str) -> list[dict[str, str]]:
        """What each worker has of this machine, as `processes.shares` says."""
        all_gpus = self._takes_all(parallel)
        return list(shares(self.count(parallel), all_gpus=all_gpus)) if self.is_here else []

    def described(self, parallel: str) -> str:
        """Who trains, and with what: a line, and one more for GPUs that stand idle."""
        count = self.count(parallel)
        who = f"{count} {'worker' if count == 1 else 'workers'}"
        if not self.is_here:
            return (
                f"{self.name}: {count} trials at once, of {self.cpus} cores, {self.gpus} GPUs each"
            )
        taken = self.shares(parallel)
        cores = f"cores {taken[0]['cores']}" + (" and so on" if count > 1 else "")
        used = list(
            dict.fromkeys(gpu for share in taken for gpu in share["gpus"].split(",") if gpu)
        )
        with_gpus = f", GPUs {', '.join(used)}" if used else ""
        lines = [f"{self.name}: {who}, {cores}{with_gpus}"]
        if idle := self.idle(parallel):
            lines.append(idle)
        return "\n".join(lines)

    def idle(self, parallel: str) -> str | None:
        """What to do about GPUs that no worker has; None if there are none."""
        there = gpus() if self.is_here else []
        used = {gpu for share in self.shares(parallel) for gpu in share["gpus"].split(",")}
        left = [gpu for gpu in there if gpu not in used]
        if not left:
            return None
        several = f"GPUs {', '.join(left)} stand" if len(left) > 1 else f"GPU {left[0]} stands"
        return f"{several} idle, as a worker trains on one: give --workers={len(there)}"

    def count(self, parallel: str) -> int:
        """How many workers there are, for configs with this `parallel`."""
        if self.workers is not None:
            return self.workers
        if self.kind == "auto" and parallel == "jit" and not has_accelerators():
            # A step on two cores takes more than half the time of one on each of them.
            return len(cores())
        return 1 if self._takes_all(parallel) else max(len(gpus()), 1)

    def of(self, trials: int, parallel: str) -> Engine:
        """The same with no more workers than there are trials to be trained."""
        if self.workers is not None or not self.is_here:
            return self
        return replace(self, workers=min(self.count(parallel), max(trials, 1)))

    def _takes_all(self, parallel: str) -> bool:
        """Whether a worker can use several GPUs."""
        return self.kind in _GROUPING or parallel != "jit"
