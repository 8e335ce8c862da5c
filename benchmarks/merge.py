"""Several results of one kind as one: of what two of them have measured, the later one counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from convjax.config import UserError

Record = dict[str, Any]


def merged(records: Sequence[Record]) -> Record:
    """One record of several of a kind: each part, as a network's training, is that of the last.

    It names those that it has parts of as its "sources". Where the kind has no parts, the last
    record counts.

    Raises:
        UserError: if its sources were measured on different machines, or with other packages.
    """
    last = records[-1]
    head = last.get("table", {}).get("head")
    parts = {}
    for record in records:
        if record.get("table", {}).get("head") == head:
            parts.update({key: (record, rows) for key, rows in _parts(record).items()})
    if not parts:
        return last
    sources = [record for record in records if any(one is record for one, _ in parts.values())]
    for source in sources[1:]:
        _check_comparable(sources[0], source)
    rows = [row for _, rows in parts.values() for row in rows]
    content = {"rows": rows} if head is None else {"table": {"head": head, "rows": rows}}
    return {**last, "sources": sources, **content}


def _parts(record: Record) -> dict[Any, list[Any]]:
    """The rows that stay together, by what they are of: a mode of a network, or a row's name."""
    parts: dict[Any, list[Any]] = {}
    if "table" in record:
        for row in record["table"]["rows"]:
            parts.setdefault(row[0], []).append(row)
    elif record["kind"] in ("networks", "gpu"):
        rounds = (record.get("plan") or {}).get("rounds", 0)
        for row in record["rows"]:
            parts.setdefault((row["network"], row["mode"]), []).append({**row, "rounds": rounds})
    return parts


def _check_comparable(one: Record, other: Record) -> None:
    """Refuses figures of different machines: their ratios would say nothing."""
    first, second = _circumstances(one), _circumstances(other)
    for name in first | second:
        if first.get(name) != second.get(name):
            raise UserError(
                f"{one['file']} was measured with {name} {first.get(name)}, {other['file']} with "
                f"{second.get(name)}: give results of one machine, or measure again"
            )


def _circumstances(record: Record) -> dict[str, Any]:
    """All that must be the same where figures are to stand side by side."""
    machine = {**record["machine"], **record["machine"]["versions"]}
    for name in ("mhz", "source", "versions"):
        machine.pop(name, None)
    return machine | {"device": record.get("device"), "threads": record["threads"]}
