"""Measures whole networks in convjax and other libraries, interleaved, on this machine.

  python -m benchmarks.networks
  python -m benchmarks.networks --networks=lenet,resnet18 --competitors=linen,torch --rounds=5
  python -m benchmarks.networks --only=inference --threads=1 --out=results.json

A step of training is forward, backward, SGD with momentum and batch statistics, all in float32.
From the same weights every competitor must give convjax's logits and its losses over three steps,
or it is not timed. `python -m benchmarks.page FILE` writes the results into docs/performance.md.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from benchmarks import contest
from benchmarks import record as results
from benchmarks.cases import CASES, COMPETITORS, OURS, Case
from benchmarks.timing import Plan
from convjax.flags import guard, parse


def main(argv: list[str]) -> None:
    """Measures what `argv` asks for; raises UserError for what a person can put right."""
    options = flags.FlagValues()
    define = functools.partial(flags.DEFINE_list, flag_values=options)
    networks = define("networks", list(CASES), f"which: {', '.join(CASES)}")
    competitors = define(
        "competitors", list(COMPETITORS), f"beside convjax, which: {', '.join(COMPETITORS)}"
    )
    rounds, seconds, threads, out = results.define_flags(options, rounds=7, seconds=40.0)
    only = flags.DEFINE_enum(
        "only", None, ["train", "inference"], "one of the two", flag_values=options
    )
    text = "images a step of training, instead of each network's own number"
    batch = flags.DEFINE_integer("batch", None, text, lower_bound=1, flag_values=options)
    parse(options, argv, __doc__)
    chosen = [CASES[name] for name in results.known("networks", networks.value, CASES)]
    if batch.value:
        chosen = [case._replace(batch=batch.value) for case in chosen]
    rivals = [
        name
        for name in results.known("competitors", competitors.value, COMPETITORS)
        if name != OURS
    ]
    modes = [only.value] if only.value else ["train", "inference"]
    plan = Plan(rounds.value, seconds.value)
    measure(
        chosen,
        [OURS, *rivals],
        modes,
        plan,
        results.cores_for(threads.value),
        results.path_for(out.value),
    )


def measure(
    cases: Sequence[Case],
    competitors: Sequence[str],
    modes: Sequence[str],
    plan: Plan,
    cores: Sequence[int],
    out: Path,
) -> None:
    """Measures and prints network by network, and writes what is known so far after each."""
    record = results.about("networks", cores, plan) | {
        "tolerance": contest.FLOAT32._asdict(),
        "gemm": {},
        "rows": [],
    }
    for case in cases:
        results.note_gemm(record["gemm"], cores)
        rows = list(contest.rows_of(case, competitors, modes, plan, cores))
        for row in rows:
            results.add_share(row, record["gemm"])
        record["rows"] += rows
        print(table(case, rows), flush=True)
        results.write(record, out)
    results.note_gemm(record["gemm"], cores)
    for row in record["rows"]:
        results.add_share(row, record["gemm"])
    results.write(record, out)
    peaks = ", ".join(f"{name} {value:.0f}" for name, value in record["gemm"].items())
    print(f"product of two 2048 x 2048 matrices, GFLOP/s: {peaks}\nwritten: {out}")


# -- What is printed -------------------------------------------------------------------------------


def table(case: Case, rows: Sequence[dict[str, Any]]) -> str:
    """The rows of a network as text, for every mode how far convjax is ahead.

    "convjax is" tells how many times as fast as that competitor convjax is.
    """
    head = "images/s", "ms", "min", "max", "n", "dropped", "convjax is", "peak", "MB", "compile s"
    lines = []
    for mode, batch in dict.fromkeys((row["mode"], row["batch"]) for row in rows):
        these = [row for row in rows if (row["mode"], row["batch"]) == (mode, batch)]
        title = f"{case.title}, {mode}, {batch} at once"
        lines += ["", f"{title:<32}" + "".join(f"{word:>11}" for word in head)]
        ours = next((row for row in these if row["competitor"] == OURS), {})
        for row in these:
            name = COMPETITORS[row["competitor"]].title
            if "error" in row:
                lines.append(f"  {name:<30}{row['error']}")
                continue
            cells = "".join(f"{cell:>11}" for cell in _cells(row, ours))
            lines.append(f"  {name:<30}{cells}")
    return "\n".join(lines)


def _cells(row: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    seconds, memory = row["seconds"], row.get("peak_memory")
    ahead = row["seconds"]["median"] / ours["seconds"]["median"] if "seconds" in ours else None
    return [
        f"{row['images_per_second']:.1f}",
        *(f"{1e3 * seconds[key]:.2f}" for key in ("median", "min", "max")),
        f"{seconds['n']}",
        f"{seconds['dropped']}",
        "" if ahead is None else f"{ahead:.2f} x",
        f"{row['share_of_peak']:.0%}",
        "" if memory is None else f"{memory / 2**20:.0f}",
        f"{row['compile_seconds']:.1f}",
    ]


if __name__ == "__main__":
    start = time.perf_counter()
    status = guard(main, sys.argv)
    print(f"{time.perf_counter() - start:.0f} s", file=sys.stderr)
    sys.exit(status)
