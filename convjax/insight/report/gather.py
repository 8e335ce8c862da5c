"""What the report of a run says, from its folder; what cannot be read is left out, and told.

    run = gathered("runs/mine")         # what JSON can hold, with pictures as data URIs

A run may be at work, finished, or broken off. Curves and config take its text files alone; for what
the network does with images, its checkpoint and its data are opened.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convjax.config import Experiment, UserError, differences, flatten, read_json
from convjax.insight.report.lines import curves, number_of, read_lines, spreads
from convjax.runlog import RunLog

Pairs = list[tuple[str, str]]


def gathered(folder: str | os.PathLike[str], *, looks: bool = True) -> dict[str, Any]:
    """All that a report says of the run in a folder.

    looks: whether the network is opened, with its data.

    Raises:
        UserError: if the folder holds no run, or its config or its metrics cannot be read.
    """
    log = RunLog(folder)
    if not log.exists():
        raise UserError(f"{log.folder} holds no run: it has no {log.config_file.name}")
    config, left_out = read_json(log.config_file), []
    record = _record(log, left_out)
    lines = _lines(log.metrics_file, left_out)
    spread = _lines(log.distributions_file, left_out)
    found = curves(lines)
    seen = _seen(log, left_out) if looks else None
    return {
        "name": log.folder.resolve().name,
        "status": str(record.get("status", "unknown")),
        "error": _text(record.get("error")),
        "result": _result(record, lines),
        "curves": found,
        "spreads": spreads(spread),
        "seen": seen,
        "config": {path: _shown(value) for path, value in flatten(config).items()},
        "differs": _differs(config),
        "environment": _environment(record),
        "cost": _cost(record, lines, found, seen, log.folder),
        "left_out": left_out,
    }


def labels(folders: Sequence[str | os.PathLike[str]]) -> list[str]:
    """What to call runs: the ends of their paths that tell them apart.

    >>> labels(["runs/one", "runs/two"]), labels(["a/run", "b/run"])
    (['one', 'two'], ['a/run', 'b/run'])
    """
    parts = [Path(folder).resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        ends = ["/".join(each[-length:]) for each in parts]
        if len(set(ends)) == len(ends):
            return ends
    return [str(folder) for folder in folders]


# -- Of its text files -----------------------------------------------------------------------------


def _record(log: RunLog, left_out: list[str]) -> dict[str, Any]:
    try:
        return log.record()
    except UserError:
        left_out.append("run.json cannot be read: status, environment and results are left out.")
        return {}


def _lines(file: Path, left_out: list[str]) -> list[dict[str, Any]]:
    try:
        lines, torn = read_lines(file)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    if torn:
        left_out.append(f"{torn} line{'s' * (torn != 1)} of {file.name} could not be read.")
    return lines


def _result(record: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The result at the end, or, before there is one, the newest on test or valid."""
    final = record.get("final")
    told = [line for line in lines if line.get("split") in ("test", "valid")]
    line = final if isinstance(final, dict) else (told[-1] if told else None)
    if line is None:
        return None
    numbers = {name: number_of(line.get(name)) for name in ("loss", "accuracy", "step", "epoch")}
    return numbers | {"split": str(line.get("split", "test")), "final": line is final}


def _differs(config: Experiment) -> list[dict[str, str]]:
    """What of a config is not the default, by path."""
    return [
        {"path": path, "value": _shown(value), "default": _shown(default)}
        for path, (value, default) in differences(config, Experiment()).items()
    ]


def _environment(record: Mapping[str, Any]) -> Pairs:
    """What it ran on, as far as that is known."""
    source, devices = record.get("source"), record.get("devices")
    versions = record.get("versions")
    found: dict[str, Any] = {
        "started": record.get("start"),
        "ended": record.get("end"),
        "resumed at step": ", ".join(map(str, record.get("resumed") or ())) or None,
        "machine": record.get("machine"),
        "cores": record.get("cores"),
        "processes": record.get("processes"),
    }
    if isinstance(devices, list):
        kinds = {str(each): devices.count(each) for each in devices}
        text = ", ".join(f"{count} of {kind}" for kind, count in kinds.items())
        found["devices"] = f"{text} ({record.get('platform')})"
    if isinstance(source, dict):
        changed = ", with changes" if source.get("dirty") else ""
        found["source"] = f"{str(source.get('revision'))[:12]}{changed}"
    if isinstance(versions, dict):
        found |= {f"{name}": version for name, version in versions.items()}
    return [(name, str(value)) for name, value in found.items() if value is not None]


def _cost(
    record: Mapping[str, Any],
    lines: Sequence[Mapping[str, Any]],
    found: Mapping[str, Any],
    seen: Mapping[str, Any] | None,
    folder: Path,
) -> Pairs:
    """Time, size and work."""
    spent = number_of(record.get("seconds"))
    if spent is None:
        told = [number_of(line.get("seconds")) for line in lines]
        spent = max((each for each in told if each is not None), default=None)
    pairs: Pairs = []
    if spent is not None:
        pairs.append(("time", _duration(spent)))
    rates = [each for each in found.get("train", {}).get("images_per_second", ()) if each]
    if rates:
        pairs.append(("images a second", f"{statistics.median(rates):,.0f} (median)"))
    for name, each in (record.get("compiled") or {}).items():
        seconds = number_of(each.get("seconds")) if isinstance(each, dict) else None
        if seconds is not None:
            cached = ", from the cache" if each.get("from_cache") else ""
            pairs.append((f"compiling the {name.replace('_', ' ')}", f"{seconds:.1f} s{cached}"))
    if seen is not None:
        pairs.append(("parameters", f"{seen['parameters']:,}"))
        pairs.append(("multiply-adds an image", f"{seen['multiply_adds']:,}"))
    size = sum(file.stat().st_size for file in folder.rglob("checkpoints/**/*") if file.is_file())
    if size:
        pairs.append(("checkpoints", f"{size / 2**20:,.1f} MiB"))
    if skipped := number_of(record.get("skipped")):
        pairs.append(("skipped steps", f"{skipped:,}"))
    return pairs


# -- Of its checkpoint and data --------------------------------------------------------------------


def _seen(log: RunLog, left_out: list[str]) -> dict[str, Any] | None:
    """What the network does with images; None where it or they are not to be had."""
    from convjax.insight.report.look import seen_by
    from convjax.trained import trained

    try:
        return seen_by(trained(log.folder))
    except (UserError, OSError) as error:
        text = " ".join(str(error).split())
        left_out.append(f"What needs the network and its images is left out: {text}")
        return None


# -- Texts -----------------------------------------------------------------------------------------


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
