"""Who else is told of a run's metrics: TensorBoard, Weights & Biases, MLflow, or your own.

    class Mine:
        def scalars(self, step, values): ...    # {"test/accuracy": 0.9, "test/loss": 0.3}
        def close(self, error): ...

`config.writers` names them, `config.tensorboard` asks for the first. Each is told of every line of
`metrics.jsonl` once, however often the run is stopped and taken up again.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from convjax.config import ConfigError, Experiment, flatten
from convjax.names import imported, nearest
from convjax.runlog import Followed, RunError, RunLog


class Writer(Protocol):
    """Takes numbers by name, step after step, until it is closed."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Is told what numbers are after that many steps; of one step it may be several times."""

    def close(self, error: BaseException | None) -> None:
        """Ends it: nothing follows, unless the run is taken up again.

        error: what has broken off the run, or None.
        """


# (log, config) -> writer; what it keeps for its next sitting it notes in `log.record()["writers"]`
Maker = Callable[[RunLog, Experiment], Writer]


def check(config: Experiment) -> None:
    """Raises ConfigError for a writer that does not exist, or whose package is not installed."""
    for name in _names(config):
        _maker(name)


def scalars_of(line: Mapping[str, Any]) -> dict[str, float]:
    """What a writer is told of a line of the metrics: finite numbers, by split and name.

    >>> scalars_of({"step": 5, "epoch": 0.5, "split": "test", "loss": 0.25, "accuracy": None})
    {'test/loss': 0.25}
    """
    return {
        f"{line['split']}/{name}": float(value)
        for name, value in line.items()
        if name not in _NO_SCALARS
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
    }


@contextlib.contextmanager
def telling(
    log: RunLog, config: Experiment, before: Sequence[Mapping[str, Any]] = ()
) -> Iterator[None]:
    """Tells the config's writers of each line that is logged, and closes them.

    What goes wrong with one is told once on standard error, and it is told of no more: the metrics
    are in the folder all the same.

    before: the lines that the metrics had before they were cut back to the step that the run goes
        on from: they were told.
    """
    names = [] if isinstance(log, Followed) else _names(config)
    if not names:
        yield
        return
    told = _told(log, before)
    now = dict(told)

    def note() -> None:
        log.note(writers=log.record().get("writers", {}) | {"told": now})

    def listen(line: Mapping[str, Any]) -> None:
        now[line["split"]] = max(line["step"], now.get(line["split"], -1))

    note()
    log.listeners.append(listen)
    with contextlib.ExitStack() as listening:
        for name in names:
            listening.enter_context(_listening(log, config, name, told))
        try:
            yield
        finally:
            log.listeners.remove(listen)
            # Lines of an evaluation that was broken off are cut off, and come once more.
            with contextlib.suppress(RunError):  # The disk may be full, which then is the error.
                note()


# -- Those that there are --------------------------------------------------------------------------


class TensorBoard:
    """Writes event files, in the folder `tensorboard` of the run.

    They are made anew of the metrics when the run is taken up: a killed process leaves half of one.
    """

    def __init__(self, log: RunLog, config: Experiment):
        from tensorboardX.event_file_writer import EventsWriter

        folder = log.folder / "tensorboard"
        folder.mkdir(exist_ok=True)
        for file in folder.glob("events.out.tfevents.*"):
            file.unlink()
        self._events = EventsWriter(str(folder / "events"))
        for line in log.metrics():
            self.scalars(line["step"], scalars_of(line))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one event, which is in the file when this returns."""
        self._events.write_event(self._event(step, values))
        self._events.flush()

    def close(self, error: BaseException | None) -> None:
        """Closes the file."""
        self._events.close()

    @staticmethod
    def _event(step: int, values: Mapping[str, float]) -> Any:
        from tensorboardX.proto import event_pb2, summary_pb2

        event, summary = vars(event_pb2)["Event"], vars(summary_pb2)["Summary"]
        numbers = [summary.Value(tag=name, simple_value=number) for name, number in values.items()]
        return event(step=step, wall_time=time.time(), summary=summary(value=numbers))


class Wandb:
    """Tells Weights & Biases, in one run there for one here; its project is the config's name."""

    def __init__(self, log: RunLog, config: Experiment):
        import wandb  # pyright: ignore[reportMissingImports]

        known = _kept(log, "wandb", lambda: uuid.uuid4().hex[:8])
        self._run = wandb.init(
            project=config.name,
            id=known,
            resume="allow",
            name=log.folder.name,
            dir=str(log.folder),
            config=flatten(config),
            # Runs of a sweep that train at once are several in one process.
            reinit="create_new",
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds to what is known of the step, which W&B sends once there is a later one."""
        self._run.log(dict(values), step=step)

    def close(self, error: BaseException | None) -> None:
        """Sends what is left; a run that was broken off counts as failed."""
        self._run.finish(exit_code=0 if error is None else 1)


class MLflow:
    """Tells MLflow, in one run there for one here; its experiment is called as the config."""

    def __init__(self, log: RunLog, config: Experiment):
        # The client alone: what `mlflow.log_metric` logs to is one run of the whole process.
        import mlflow  # pyright: ignore[reportMissingImports]

        self._mlflow, self._client = mlflow, mlflow.MlflowClient()
        self._run = _kept(log, "mlflow", lambda: self._begin(log.folder, config))
        self._client.update_run(self._run, status="RUNNING")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the numbers in one request."""
        now, metric = int(time.time() * 1000), self._mlflow.entities.Metric
        found = [metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=found)

    def close(self, error: BaseException | None) -> None:
        """Says that the run has ended, and whether by itself."""
        broken_off = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        self._client.set_terminated(self._run, "FINISHED" if error is None else broken_off)

    def _begin(self, folder: Path, config: Experiment) -> str:
        client, param = self._client, self._mlflow.entities.Param
        found = client.get_experiment_by_name(config.name)
        number = client.create_experiment(config.name) if found is None else found.experiment_id
        run = client.create_run(number, run_name=folder.name).info.run_id
        params = [param(path, str(value)[:500]) for path, value in flatten(config).items()]
        for first in range(0, len(params), 100):  # More are refused.
            client.log_batch(run, params=params[first : first + 100])
        return run


# name -> what makes it, the package that it needs, and what installs that
WRITERS: dict[str, tuple[Maker, str, str]] = {
    "tensorboard": (TensorBoard, "tensorboardX", "'convjax[tensorboard]'"),
    "wandb": (Wandb, "wandb", "'wandb>=0.19.10'"),  # which first had `create_new`
    "mlflow": (MLflow, "mlflow", "mlflow"),
}

# Of the line itself, or told by others of it.
_NO_SCALARS = {"step", "epoch", "split", "correct", "count", "seconds", "final"}


# -- What these are made of ------------------------------------------------------------------------


def _names(config: Experiment) -> list[str]:
    """The config's writers, each once."""
    return list(dict.fromkeys([*["tensorboard"] * config.tensorboard, *config.writers]))


def _maker(name: str) -> Maker:
    """What makes a writer of that name, once it is known that it can be made."""
    if ":" in name:
        try:
            return imported(name, "config.writers")
        except ValueError as error:
            raise ConfigError(str(error)) from error
    if name not in WRITERS:
        raise ConfigError(
            f"config.writers has {name!r}: {nearest(name, WRITERS)} "
            "(or name a function of your own as package.module:function)"
        )
    maker, package, extra = WRITERS[name]
    if sys.modules.get(package) is None and importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"config asks for {name}, which needs {package}: pip install {extra}, or leave it out"
        )
    return maker


@contextlib.contextmanager
def _listening(
    log: RunLog, config: Experiment, name: str, told: Mapping[str, int]
) -> Iterator[None]:
    """Has a writer told of each line that it was not told of before."""
    # A run is worth more than who hears of it, and libraries raise whatever they like.
    try:
        writer = _maker(name)(log, config)
    except Exception as error:
        _complain(name, error, log)
        yield
        return

    def listen(line: Mapping[str, Any]) -> None:
        # TensorBoard's files are as the metrics are: what was cut off is written once more.
        if name != "tensorboard" and line["step"] <= told.get(line["split"], -1):
            return
        try:
            writer.scalars(line["step"], scalars_of(line))
        except Exception as error:
            log.listeners.remove(listen)
            _complain(name, error, log)

    log.listeners.append(listen)
    broken_off: BaseException | None = None
    try:
        yield
    except BaseException as error:
        broken_off = error
        raise
    finally:
        if listen in log.listeners:
            log.listeners.remove(listen)
        try:
            writer.close(broken_off)
        except Exception as error:
            _complain(name, error, log)


def _complain(name: str, error: Exception, log: RunLog) -> None:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    print(f"warning: {name} is told no more ({text}); {log.metrics_file} has all", file=sys.stderr)


def _told(log: RunLog, before: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """The last step of each split that was told of, in any sitting."""
    told = dict(log.record().get("writers", {}).get("told", {}))
    for line in before:
        told[line["split"]] = max(line["step"], told.get(line["split"], -1))
    return told


def _kept(log: RunLog, name: str, make: Callable[[], str]) -> str:
    """What a writer calls the run: kept in the run's record, so that it is the same once more."""
    known = log.record().get("writers", {})
    if name not in known:
        known = known | {name: make()}
        log.note(writers=known)
    return known[name]
