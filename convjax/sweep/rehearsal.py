"""Whether the networks of a sweep can be built, asked of a few of its points before any is trained.

    rehearse(space, config)                     # UserError: the point, and what is wrong with it

What is asked is what `python -m experiments.train --dry_run` asks: that data, network and optimizer
fit together, by shapes alone. A process of its own does that, as this one is to have no JAX:

    python -m convjax.sweep.rehearsal COUNT TRUSTED     # a config on each line of its input
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

from convjax.config import Experiment, UserError, from_dict, to_dict
from convjax.flags import guard, leave
from convjax.names import trust_only, trusted
from convjax.sweep.distributions import SpaceError
from convjax.sweep.space import Point, Space, corners, resolve, shown

_MOST = 16  # points that are tried, at about a second each
_TIMES = 3  # that the process is started, where points end it
_PATIENCE = 60.0  # seconds without an answer after which the rest is left to the trials


def rehearse(
    space: Space, config: Experiment, environment: Mapping[str, str] | None = None
) -> None:
    """Builds networks of all values of the space's choices, as far as few points have them.

    What ends the process that builds, hangs, or is no mistake in a config is left to the trials,
    each of which harms no other.

    environment: variables that a worker has beside those of this process.

    Raises: SpaceError that says at which point what is wrong.
    """
    points = telling(corners(space))
    with contextlib.suppress(_HangsError):
        for _ in range(_TIMES):
            answered = 0
            configs = [to_dict(resolve(config, point, config.seed)) for point in points]
            with contextlib.closing(_answers(configs, environment or {})) as answers:
                for wrong in answers:
                    if wrong is not None:
                        at = shown(points[answered])
                        raise SpaceError(f"of the sweep, {at} cannot be run: {wrong}")
                    answered += 1
            # The one after those with an answer ended the process.
            points = points[answered + 1 :]
            if not points:
                break


def telling(points: Sequence[Point], most: int = _MOST) -> list[Point]:
    """A few of the points that have every value of each path; of real numbers, the ends.

    >>> telling([{"a": 1, "b": 0.1}, {"a": 1, "b": 0.5}, {"a": 1, "b": 0.9}, {"a": 2, "b": 0.1}])
    [{'a': 1, 'b': 0.1}, {'a': 1, 'b': 0.9}, {'a': 2, 'b': 0.1}]
    """
    numbers: dict[str, list[float]] = {}
    for point in points:
        for path, value in point.items():
            if isinstance(value, float):
                numbers.setdefault(path, []).append(value)
    ends = {path: (min(values), max(values)) for path, values in numbers.items()}
    marks = [set(_marks(point, ends)) for point in points]
    missing: set[Any] = set().union(*marks)
    found: list[Point] = []
    while missing and len(found) < most:
        best = max(range(len(points)), key=lambda place: len(marks[place] & missing))
        found.append(points[best])
        missing -= marks[best]
    return found


def _marks(point: Point, ends: Mapping[str, tuple[float, float]]) -> Iterator[Any]:
    """What is to be seen of a point: its values, those of keywords with whose they are."""
    for path, value in point.items():
        if not isinstance(value, float) or value in ends[path]:
            section = path.partition(".args.")[0]
            yield path, repr(value), repr(point.get(f"{section}.name"))


class _HangsError(Exception):
    pass


def _answers(
    configs: Sequence[dict[str, Any]], environment: Mapping[str, str]
) -> Generator[str | None, None, None]:
    """What is wrong with each config, None for nothing; it stops at one that ends the process.

    Raises: _HangsError at one that does not end.
    """
    known = trusted()
    names = json.dumps(None if known is None else sorted(known))
    process = subprocess.Popen(
        [sys.executable, "-m", "convjax.sweep.rehearsal", str(len(configs)), names],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # Where a trial tells the same, its log has it.
        # The workers will want all the memory of the GPU.
        env=os.environ | environment | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write("".join(f"{json.dumps(each)}\n" for each in configs).encode())
            process.stdin.flush()
        told = b""
        for _ in configs:
            while b"\n" not in told:
                ready, _, _ = select.select([process.stdout], [], [], _PATIENCE)
                part = os.read(process.stdout.fileno(), 65536) if ready else None
                if part is None:
                    raise _HangsError
                if not part:
                    return
                told += part
            line, _, told = told.partition(b"\n")
            yield json.loads(line)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


# -- The process that builds -----------------------------------------------------------------------


def main(argv: list[str]) -> None:
    """Answers each config of the input by a line of JSON: what is wrong with it, or null."""
    _, count, names = argv
    configs = [sys.stdin.readline() for _ in range(int(count))]
    threading.Thread(target=_end_with_input, daemon=True).start()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # What networks print is no answer.
    if (known := json.loads(names)) is not None:
        trust_only(known)
    for config in configs:
        print(json.dumps(_wrong(json.loads(config))), file=answers)


def _wrong(config: Mapping[str, Any]) -> str | None:
    from convjax.assemble import assemble

    try:
        assemble(from_dict(config))
    except UserError as error:
        return " ".join(str(error).split())
    except Exception:
        # A trial fails by it with its traceback in its log, which tells more.
        return None
    return None


def _end_with_input() -> None:
    """Ends the process once whoever started it is gone."""
    while os.read(sys.stdin.fileno(), 65536):
        pass
    os._exit(1)


if __name__ == "__main__":
    leave(guard(main, sys.argv))
