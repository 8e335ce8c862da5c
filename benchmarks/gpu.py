"""Measures ResNet-50 and LeNet in bfloat16 on a GPU: convjax, Flax linen and PyTorch.

  python -m benchmarks.gpu
  python -m benchmarks.gpu --networks=resnet50 --batch=128 --competitors=linen

Images are bfloat16, parameters float32; PyTorch computes under autocast, channels-last. Everybody
holds memory of the GPU at the same time: where that is too much, give fewer competitors at once,
or a smaller batch.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from benchmarks import contest, machine, networks
from benchmarks import record as results
from benchmarks.cases import CASES, OURS, Case
from benchmarks.timing import Plan
from benchmarks.worker import alone
from convjax.config import UserError
from convjax.flags import guard, parse

BATCHES = {"resnet50": 256, "lenet": 128}
RIVALS = ("linen", "torch_channels_last", "torch_compile")
DTYPE = "bfloat16"
# Eight bits of a number are kept: after fifty layers logits deviate by some hundredths.
BFLOAT16 = contest.Tolerance(0.1, 0.03, 0.3)


def main(argv: list[str]) -> None:
    """Measures what `argv` asks for; raises UserError for what a person can put right."""
    options = flags.FlagValues()
    define = functools.partial(flags.DEFINE_list, flag_values=options)
    chosen = define("networks", list(BATCHES), f"which: {', '.join(BATCHES)}")
    competitors = define("competitors", list(RIVALS), f"beside convjax: {', '.join(RIVALS)}")
    rounds, seconds, threads, out = results.define_flags(options, rounds=10, seconds=60.0)
    text = "images a step, instead of each network's own number"
    batch = flags.DEFINE_integer("batch", None, text, lower_bound=1, flag_values=options)
    parse(options, argv, __doc__)
    names = results.known("networks", chosen.value, BATCHES)
    cases = [CASES[name]._replace(batch=batch.value or BATCHES[name]) for name in names]
    rivals = results.known("competitors", competitors.value, RIVALS)
    cores = results.cores_for(threads.value)
    seen = {
        library: alone(f"benchmarks.gpu:{library}_device", cores=cores) for library in LIBRARIES
    }
    if seen["jax"] is None:
        raise UserError(
            f"JAX {machine.version_of('jax')} sees no GPU: where there is one, "
            "pip install 'jax[cuda12]', and a PyTorch for CUDA"
        )
    path = results.path_for(out.value)
    measure(cases, [OURS, *rivals], Plan(rounds.value, seconds.value), cores, path, seen)


def measure(
    cases: Sequence[Case],
    competitors: Sequence[str],
    plan: Plan,
    cores: Sequence[int],
    out: Path,
    seen: dict[str, str | None],
) -> None:
    """Measures and prints network by network, and writes what is known so far after each.

    seen: the GPU's name as JAX and PyTorch have it; None where a library sees none.
    """
    record = results.about("gpu", cores, plan) | {
        "device": seen["jax"],
        "dtype": DTYPE,
        "tolerance": BFLOAT16._asdict(),
        "gemm": {},
        "rows": [],
    }
    print(f"device: {seen['jax']}", flush=True)
    for library, device in seen.items():
        if device is not None:
            arguments = (library, 8192, DTYPE, "cuda")
            record["gemm"][library] = alone("benchmarks.machine:gemm", *arguments, cores=cores)
    for case in cases:
        rows = contest.rows_of(
            case, competitors, ["train"], plan, cores, options_of(competitors), BFLOAT16
        )
        for row in rows:
            results.add_share(row, record["gemm"])
        record["rows"] += rows
        print(networks.table(case, rows), flush=True)
        results.write(record, out)
    print(f"written: {out}")


def options_of(competitors: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What each competitor's `build` is told, so that it computes in bfloat16 on the GPU."""
    return {
        name: {"dtype": DTYPE, "device": "cuda"} if name.startswith("torch") else {"dtype": DTYPE}
        for name in competitors
    }


def jax_device() -> str | None:
    """The name of JAX's first GPU, or None."""
    import jax

    first = jax.devices()[0]
    return None if first.platform == "cpu" else first.device_kind


def torch_device() -> str | None:
    """The name of PyTorch's first GPU, or None."""
    try:
        import torch
    except ModuleNotFoundError:
        return None
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


LIBRARIES = ("jax", "torch")


if __name__ == "__main__":
    sys.exit(guard(main, sys.argv))
