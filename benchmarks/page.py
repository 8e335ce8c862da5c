"""Writes results into docs/performance.md, between its markers, and draws their chart.

  python -m benchmarks.page benchmarks/results/*.json

A result of kind K stands between `<!-- begin: K -->` and `<!-- end: K -->`; what is written around
them stays. Where the page has no such markers yet, they are added at its end. Files of one kind,
measured on one machine, make one result: what two of them have, as a network's training, is taken
from the later one. A result that brings a "table" of its own, {"head": [...], "rows": [[...]]}, is
written as it is.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from benchmarks.cases import CASES, COMPETITORS, OURS
from benchmarks.merge import merged
from convjax.config import UserError
from convjax.flags import guard, parse

DOCS = Path(__file__).parent.parent / "docs"
TITLE = "# How fast it is\n"
Record = dict[str, Any]
Row = dict[str, Any]


def main(argv: list[str]) -> None:
    """Writes the files that `argv` names into the page."""
    options = flags.FlagValues()
    page = flags.DEFINE_string(
        "page", str(DOCS / "performance.md"), "the page to write", flag_values=options
    )
    words = _joined(argv[1:], options)
    files = [word for word in words if not word.startswith("-")]
    parse(options, [argv[0], *(word for word in words if word.startswith("-"))], __doc__)
    if not files:
        raise UserError("no results are given: python -m benchmarks.page RESULTS.json")
    kinds: dict[str, list[Record]] = {}
    for record in map(_read, files):
        kinds.setdefault(record["kind"], []).append(record)
    records = {kind: merged(each) for kind, each in kinds.items()}
    write(Path(page.value), records)
    if "networks" in records:
        figure = Path(page.value).parent / "figures" / "performance.png"
        draw(records["networks"], figure)


def write(page: Path, records: dict[str, Record]) -> None:
    """Puts the tables of all records, by kind, between their markers on the page."""
    text = page.read_text() if page.exists() else TITLE
    for kind, record in records.items():
        tables = TABLES.get(kind, _own_table)(record)
        text = between_markers(text, kind, f"{tables}\n\n{provenance(record)}")
    page.write_text(text)


def between_markers(text: str, kind: str, content: str) -> str:
    """The text with this content between the markers of that kind, which are added if need be.

    >>> print(between_markers("Before.", "ops", "new"))
    Before.
    <BLANKLINE>
    <!-- begin: ops -->
    new
    <!-- end: ops -->
    <BLANKLINE>
    """
    begin, end = f"<!-- begin: {kind} -->", f"<!-- end: {kind} -->"
    section = f"{begin}\n{content}\n{end}"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if pattern.search(text):
        return pattern.sub(lambda _: section, text, count=1)
    return f"{text.rstrip()}\n\n{section}\n"


def provenance(record: Record) -> str:
    """Where, when and how the figures of a record were measured, as one paragraph."""
    sources = record.get("sources") or [record]
    machine = record["machine"]
    runs = "; ".join(
        f"{each['date']} by `{each['command']}` at commit {each['machine']['source']}"
        for each in sources
    )
    mhz = _range([each["machine"].get("mhz") for each in sources])
    gpu = f"{record['device']}; " if record.get("device") else ""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        f"Measured {runs}: {gpu}{machine['processor']}{mhz and f' at {mhz} MHz'}, "
        f"{record['threads']} of {machine['cores']} cores used, {machine['memory_gib']} GiB, "
        f"{machine['system']}, Python {machine['python']}; {versions}."
    ]
    plans = [each["plan"] for each in sources if each.get("plan")]
    if plans:
        told = dict.fromkeys(f"{plan['rounds']} turns or {plan['seconds']:g} s" for plan in plans)
        lines.append(
            f"At most {', or '.join(told)} of each, interleaved; n is the number kept, after "
            "those that other processes disturbed were dropped."
        )
    gemms = [each["gemm"] for each in sources if each.get("gemm")]
    if gemms:
        names = dict.fromkeys(name for gemm in gemms for name in gemm)
        peaks = ", ".join(f"{name} {_range([g.get(name) for g in gemms])}" for name in names)
        lines.append(
            f"Peak is the best product of two matrices on this machine, in the same run: {peaks} "
            "GFLOP/s. A network's work is 2 per multiply-add of its convolutions and dense "
            "layers, three times the forward pass for training."
        )
    return "\n".join(lines)


def _range(values: Sequence[float | None]) -> str:
    """The known values, from the least to the largest; nothing if none is known.

    >>> _range([2.2, None, 1.0]), _range([3.0, 3.0]), _range([None])
    ('1 to 2', '3', '')
    """
    known = [value for value in values if value is not None]
    ends = (f"{value:.0f}" for value in (min(known), max(known))) if known else ()
    return " to ".join(dict.fromkeys(ends))


# -- Networks --------------------------------------------------------------------------------------


def networks_tables(record: Record) -> str:
    """A summary of training, then everything that was measured, network by network."""
    rows = record["rows"]
    parts = []
    if any(row["mode"] == "train" for row in rows):
        parts += ["### A whole step of training", _summary(rows), _errors_of(rows)]
    parts += ["### All figures", *(_details(rows, mode) for mode in _modes(rows))]
    return "\n\n".join(part for part in parts if part)


def _summary(rows: Sequence[Row]) -> str:
    """One line a network: how far convjax is ahead of each, and its share of the peak.

    n is told where fewer turns were kept than were planned.
    """
    train = [row for row in rows if row["mode"] == "train"]
    rivals = [name for name in COMPETITORS if name != OURS and _any(train, name)]
    head = ["network", "batch", "convjax, images/s", "best rival", "ahead of it"]
    head += [f"of {COMPETITORS[name].title}" for name in rivals]
    head += ["of peak", "memory to PyTorch's"]
    lines = []
    for network in dict.fromkeys(row["network"] for row in train):
        these = {row["competitor"]: row for row in train if row["network"] == network}
        timed = {name: row for name, row in these.items() if "seconds" in row}
        if OURS not in timed:
            continue
        ours = timed.pop(OURS)
        ahead = {name: _median(row) / _median(ours) for name, row in timed.items()}
        best = min(ahead, key=lambda name: ahead[name], default=None)
        memory = [row["peak_memory"] for name, row in timed.items() if _eager_torch(name, row)]
        known = ours.get("peak_memory") and memory
        lines.append(
            [
                CASES[network].title,
                f"{ours['batch']}",
                f"{ours['images_per_second']:.1f}{_fewer(ours)}",
                COMPETITORS[best].title if best else "",
                f"**{ahead[best]:.2f} x**" if best else "",
                *(
                    f"{ahead[name]:.2f} x{_fewer(timed[name])}" if name in ahead else "-"
                    for name in rivals
                ),
                f"{ours['share_of_peak']:.0%}",
                f"{ours['peak_memory'] / min(memory):.2f} x" if known else "",
            ]
        )
    return markdown(head, lines)


def _fewer(row: Row) -> str:
    n = row["seconds"]["n"]
    return f" (n = {n})" if n < row.get("rounds", 0) else ""


def _details(rows: Sequence[Row], mode: tuple[str, int | None]) -> str:
    """All figures of training, or of inference with one batch size."""
    these = [row for row in rows if _mode(row) == mode and "seconds" in row]
    head = ["network", "with", "images/s", "ms", "quartiles", "min to max", "n", "dropped"]
    head += ["of peak", "memory, MB", "compilation, s"]
    lines = []
    for row in these:
        seconds, memory = row["seconds"], row.get("peak_memory")
        low, high = seconds["quartiles"]
        lines.append(
            [
                CASES[row["network"]].title,
                COMPETITORS[row["competitor"]].title,
                f"{row['images_per_second']:.1f}",
                f"{1e3 * seconds['median']:.4g}",
                f"{1e3 * low:.4g} to {1e3 * high:.4g}",
                f"{1e3 * seconds['min']:.4g} to {1e3 * seconds['max']:.4g}",
                f"{seconds['n']}",
                f"{seconds['dropped']}",
                f"{row['share_of_peak']:.0%}",
                "" if memory is None else f"{memory / 2**20:.0f}",
                f"{row['compile_seconds']:.1f}",
            ]
        )
    kind, batch = mode
    title = "Training" if kind == "train" else f"Inference, {batch} at once"
    return f"{title}:\n\n{markdown(head, lines)}" if lines else ""


def _errors_of(rows: Sequence[Row]) -> str:
    """Who was not timed, and why."""
    missing = {
        f"- {CASES[row['network']].title}, {COMPETITORS[row['competitor']].title}: {row['error']}"
        for row in rows
        if "error" in row
    }
    return "\n".join(["Not timed:", "", *sorted(missing)]) if missing else ""


def _modes(rows: Sequence[Row]) -> list[tuple[str, int | None]]:
    return list(dict.fromkeys(map(_mode, rows)))


def _mode(row: Row) -> tuple[str, int | None]:
    return row["mode"], None if row["mode"] == "train" else row["batch"]


def _median(row: Row) -> float:
    return row["seconds"]["median"]


def _any(rows: Sequence[Row], competitor: str) -> bool:
    return any(row["competitor"] == competitor and "seconds" in row for row in rows)


def _eager_torch(name: str, row: Row) -> bool:
    return name in ("torch", "torch_channels_last") and bool(row.get("peak_memory"))


# -- The chart -------------------------------------------------------------------------------------

# Okabe and Ito's colours, for every kind of eye; convjax has the strongest.
COLOURS = {
    OURS: "#d55e00",
    "lax": "#f0e442",
    "linen": "#e69f00",
    "equinox": "#009e73",
    "keras": "#cc79a7",
    "torch": "#56b4e9",
    "torch_channels_last": "#0072b2",
    "torch_compile": "#000000",
}


def draw(record: Record, target: Path) -> None:
    """Draws how many images a second each competitor trains, as a share of convjax's."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in record["rows"] if row["mode"] == "train" and "seconds" in row]
    ours = {row["network"]: _median(row) for row in rows if row["competitor"] == OURS}
    networks = list(ours)
    names = [name for name in COMPETITORS if _any(rows, name)]
    if not networks:
        return
    figure, axes = plt.subplots(figsize=(9, 3.2), layout="constrained")
    width = 0.85 / len(names)
    for number, name in enumerate(names):
        speeds = {
            row["network"]: ours[row["network"]] / _median(row)
            for row in rows
            if row["competitor"] == name and row["network"] in ours
        }
        places = [networks.index(network) + number * width for network in speeds]
        title = COMPETITORS[name].title
        axes.bar(places, list(speeds.values()), 0.92 * width, color=COLOURS[name], label=title)
    middle = (len(names) - 1) * width / 2
    axes.set_xticks(
        [number + middle for number in range(len(networks))],
        [CASES[network].title for network in networks],
    )
    axes.axhline(1, color="#888888", lw=0.8, zorder=0)
    axes.set(ylabel="images a second, convjax = 1", title="A whole step of training")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(ncols=4, frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.1))
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=160)
    plt.close(figure)


# -- Other kinds -----------------------------------------------------------------------------------


def accuracy_table(record: Record) -> str:
    """Seconds to each accuracy, and the final accuracy, of each library."""
    targets = record["targets"]
    head = ["with", "n", *(f"seconds to {target:.0%}" for target in targets)]
    head += ["final accuracy", "seconds in all", "compilation, s"]
    lines = []
    for name, runs in record["summary"].items():
        reached = [runs["reached"].get(str(target), {}) for target in targets]
        lines.append(
            [
                name,
                f"{runs['n']}",
                *(_seconds_to(each, runs["n"]) for each in reached),
                f"{runs['accuracy']:.4f}{_deviation(runs['deviation'])}",
                f"{runs['seconds']:.0f}",
                f"{runs['compile_seconds']:.1f}",
            ]
        )
    return f"{markdown(head, lines)}\n\n{record['recipe']}"


def _deviation(value: float | None) -> str:
    return "" if value is None else f" ± {value:.4f}"


def _seconds_to(reached: dict[str, Any], runs: int) -> str:
    if not reached or not reached["n"]:
        return "never"
    some = "" if reached["n"] == runs else f", {reached['n']} of {runs} runs"
    return f"{reached['median']:.0f} ({reached['min']:.0f} to {reached['max']:.0f}{some})"


def _own_table(record: Record) -> str:
    if "table" not in record:
        known = ", ".join(sorted(TABLES))
        raise UserError(
            f"a result of kind {record['kind']!r} has no table: give it one, or a kind of {known}"
        )
    return markdown(record["table"]["head"], record["table"]["rows"])


TABLES: dict[str, Callable[[Record], str]] = {
    "networks": networks_tables,
    "gpu": networks_tables,
    "accuracy": accuracy_table,
}


def markdown(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown.

    >>> print(markdown(["a", "b"], [[1, "x"]]))
    | a | b |
    | --- | --- |
    | 1 | x |
    """
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _joined(words: Sequence[str], options: flags.FlagValues) -> list[str]:
    """The words of a command line, `--flag value` as the one word `--flag=value`."""
    joined, left = [], list(words)
    while left:
        word = left.pop(0)
        if word.startswith("-") and word.lstrip("-") in options and left:
            word = f"{word}={left.pop(0)}"
        joined.append(word)
    return joined


def _read(path: str) -> Record:
    try:
        record = json.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{path} holds no results: {error.strerror}") from None
    except ValueError as error:
        raise UserError(
            f"{path} is no JSON ({error}): give files that a benchmark has written"
        ) from None
    if not isinstance(record, dict) or "kind" not in record:
        raise UserError(f"{path} holds no results: it does not say of which kind they are")
    return record | {"file": path}


if __name__ == "__main__":
    sys.exit(guard(main, sys.argv))
