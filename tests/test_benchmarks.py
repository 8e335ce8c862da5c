"""Benchmarks: who computes something else is not timed, and who is disturbed is not counted."""

from __future__ import annotations

import contextlib
import doctest
import importlib.util
import json
import mmap
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import (
    accuracy,
    choose,
    contest,
    gpu,
    machine,
    networks,
    ops,
    page,
    timing,
    trainers,
    weights,
)
from benchmarks import record as results
from benchmarks.cases import CASES, COMPETITORS
from benchmarks.contestant import Contestant
from benchmarks.rivals import convjax_
from benchmarks.worker import Worker, WorkerError, alone
from convjax.config import UserError

LENET = CASES["lenet"]
BATCH = 8


# -- The same numbers ------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def loose_types():
    """Other libraries promote types and ranks: in a benchmark each has a process of its own."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def origin() -> weights.Origin:
    return weights.draw("lenet")


@pytest.fixture(scope="module")
def ours(origin: weights.Origin) -> Contestant:
    return contestant("convjax", origin)


def contestant(name: str, origin: weights.Origin) -> Contestant:
    """A competitor in this process, after its first three steps."""
    made = Contestant(name, "lenet", BATCH, {})
    made.build(origin.weights)
    made.logits = made.train_logits(), made.first_prediction(4)[1]  # type: ignore[attr-defined]
    for _ in range(3):
        made.first_step()
    return made


@pytest.mark.filterwarnings("ignore")  # of other libraries
@pytest.mark.parametrize("name", ["linen", "equinox", "keras", "torch", "torch_channels_last"])
def test_lenet_of_every_rival_gives_our_logits_and_losses(
    name: str, origin: weights.Origin, ours: Any, monkeypatch: pytest.MonkeyPatch
):
    if importlib.util.find_spec(COMPETITORS[name].needs) is None:
        pytest.skip(f"{COMPETITORS[name].needs} is not installed: pip install -e '.[bench]'")
    for variable, value in COMPETITORS[name].environment.items():
        monkeypatch.setenv(variable, value)
    rival: Any = contestant(name, origin)
    for mine, theirs in zip(ours.logits, rival.logits):
        assert contest.deviation(theirs, mine) < 1e-5
    assert_agree(rival, ours)


def test_rival_without_momentum_is_refused(
    origin: weights.Origin, ours: Contestant, monkeypatch: pytest.MonkeyPatch
):
    from benchmarks.rivals import torch_

    assert_agree(contestant("torch", origin), ours)
    monkeypatch.setattr(torch_, "MOMENTUM", 0.0)
    losses = contestant("torch", origin).compared_losses()
    assert not contest.agree(losses, ours.compared_losses())


def test_rival_with_one_other_bias_is_refused(origin: weights.Origin, ours: Any):
    bias = origin.weights["conv1"]["bias"] + np.float32(0.01)
    conv1 = {**origin.weights["conv1"], "bias": bias}
    other: Any = contestant("torch", origin._replace(weights={**origin.weights, "conv1": conv1}))
    seen = {"logits": {"training mode": other.logits[0]}}
    with pytest.raises(contest.Disagreement, match="training mode differ"):
        contest._agree(seen, {"logits": {"training mode": ours.logits[0]}})


def assert_agree(rival: Contestant, ours: Contestant):
    assert len(rival.compared_losses()) == 3
    assert contest.agree(rival.compared_losses(), ours.compared_losses())


# By hand: 28 * 28 * 25 * 32 + 14 * 14 * 25 * 32 * 64 + 3136 * 128 + 1280 of LeNet; 4.09 billion is
# what torchvision states of its ResNet-50.
@pytest.mark.parametrize(("name", "expected"), [("lenet", 11_065_088), ("resnet50", 4.089e9)])
def test_multiply_adds_are_those_counted_by_hand(name: str, expected: float):
    net = convjax_.NETWORKS[name](classes=CASES[name].classes)
    spec = jax.ShapeDtypeStruct((1, *CASES[name].image), jnp.float32)
    params, state = jax.eval_shape(net.init, jax.random.key(0), spec)
    assert weights.multiply_adds(net, params, state, spec) == pytest.approx(expected, rel=2e-4)


# -- Processes -------------------------------------------------------------------------------------


def test_worker_calls_methods_of_its_object_and_survives_their_errors():
    worker = Worker("collections:Counter", "aab", cores=machine.cores())
    assert worker.call("most_common", 1) == [("a", 2)]
    with pytest.raises(WorkerError, match=r"AttributeError: .*no_such"):
        worker.call("no_such")
    assert worker.call("total") == 3
    assert worker.pid != os.getpid()
    worker.close()


def test_worker_that_ends_is_an_error_with_its_status():
    with pytest.raises(WorkerError, match="ended with status 3"):
        alone("os:_exit", 3, cores=machine.cores())


def test_worker_has_the_cores_and_the_environment_that_it_is_given():
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("this system has no affinity of processes")
    one, environment = machine.cores()[:1], {"BENCHMARKED": "yes"}
    assert alone("os:sched_getaffinity", 0, cores=one, environment=environment) == set(one)
    assert alone("os:getenv", "BENCHMARKED", cores=one, environment=environment) == "yes"
    assert alone("os:getenv", "OMP_NUM_THREADS", cores=one) == "1"


# -- Time ------------------------------------------------------------------------------------------


class Watch:
    """A watch that sees what it is told to, turn by turn."""

    def __init__(self, *others: float):
        self.others = list(others)

    @contextlib.contextmanager
    def __call__(self):
        seen = machine.Seen()
        yield seen
        seen.others = self.others.pop(0) if self.others else 0.0


def test_order_rotates_from_round_to_round():
    turns = []
    players = {name: partial(lambda name: turns.append(name) or 1.0, name) for name in "abc"}
    timing.interleaved(players, timing.Plan(3, 60.0), Watch())
    assert "".join(turns) == "abc" + "bca" + "cab"


def test_disturbed_turns_are_dropped_and_taken_again():
    seconds = iter([1.0, 9.0, 2.0, 9.0, 3.0])
    plan = timing.Plan(3, 60.0)
    series = timing.interleaved({"a": lambda: next(seconds)}, plan, Watch(0, 0.2, 0, 0.06, 0.04))
    assert series["a"].kept == [1.0, 2.0, 3.0]
    assert series["a"].summary()["dropped"] == 2


def test_player_that_is_always_disturbed_ends_without_a_figure():
    plan = timing.Plan(2, 60.0)
    series = timing.interleaved({"a": lambda: 1.0}, plan, Watch(*[1.0] * 100))["a"]
    assert (series.kept, series.dropped) == ([], 6)
    with pytest.raises(ValueError, match="disturbed by other processes"):
        series.summary()


def test_slow_player_takes_two_turns_and_no_more_when_its_time_is_up():
    series = timing.interleaved(
        {"slow": lambda: time.sleep(0.02) or 1.0, "quick": lambda: 1.0},
        timing.Plan(5, 0.01),
        Watch(),
    )
    assert (len(series["slow"].kept), len(series["quick"].kept)) == (2, 5)


def test_player_that_fails_leaves_the_others_their_turns():
    def broken():
        raise WorkerError("the process ended with status -9")

    series = timing.interleaved({"a": broken, "b": lambda: 1.0}, timing.Plan(2, 60.0), Watch())
    assert series["a"].error == "the process ended with status -9"
    assert series["b"].kept == [1.0, 1.0]


def test_quartiles_are_those_of_numpy():
    values = np.random.default_rng(0).random(17).tolist()
    expected = np.quantile(values, [0.25, 0.5, 0.75])
    np.testing.assert_allclose(timing.quartiles(values), expected, rtol=1e-12)


def test_process_that_spins_is_seen_unless_it_is_our_own():
    on = machine.cores()[:1]
    spin = f"import os; os.sched_setaffinity(0, {on})\nwhile True: pass"
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system has no affinity of processes")
    with subprocess.Popen([sys.executable, "-c", spin]) as spinning:
        time.sleep(0.3)
        with machine.watched(on, []) as foreign, machine.watched(on, [spinning.pid]) as own:
            time.sleep(1.0)
        spinning.kill()
    assert foreign.others > timing.DISTURBED
    assert foreign.others - own.others > 0.2


def test_peak_of_memory_counts_what_was_freed_again():
    machine.reset_peak()
    before = machine.resident()
    # Memory of the system's, as the allocator may have kept some that was freed.
    with mmap.mmap(-1, 2**28) as memory:
        for page in range(0, 2**28, mmap.PAGESIZE):
            memory[page] = 1
    peak = machine.peak()
    if peak is None:
        pytest.skip("this system does not tell the peak of a process' memory")
    assert peak - before == pytest.approx(2**28, rel=0.1)


# -- Results ---------------------------------------------------------------------------------------


def record(network: str = "lenet", ours: float = 0.05, rounds: int = 3) -> dict[str, Any]:
    """Results of a run with two competitors and one that computed something else."""

    def row(competitor: str, seconds: float) -> dict[str, Any]:
        series = timing.Series([seconds, seconds, 2 * seconds], dropped=1)
        return {
            **{"network": network, "mode": "train", "batch": 128, "competitor": competitor},
            **{"seconds": series.summary(), "images_per_second": 128 / seconds},
            **{"compile_seconds": 1.5, "peak_memory": 2**28, "multiply_adds": 10**9},
        }

    refused = {"network": network, "mode": "train", "batch": 128, "competitor": "keras"}
    rows = [row("convjax", ours), row("torch", 0.1), refused | {"error": "losses differ"}]
    gemm = {"torch": 200.0, "jax": 100.0}
    for each in rows:
        results.add_share(each, gemm)
    about = results.about("networks", machine.cores(), timing.Plan(rounds, 1.0))
    return about | {"gemm": gemm, "rows": rows}


def test_share_of_peak_is_of_the_best_product_of_matrices():
    share = record()["rows"][0]["share_of_peak"]
    assert share == pytest.approx(2 * 1e9 / 0.05 / 200e9)


def test_page_tells_what_was_measured_and_keeps_what_was_written_around_it(tmp_path):
    results, written = tmp_path / "results.json", tmp_path / "performance.md"
    results.write_text(json.dumps(record()))
    written.write_text(
        "# Title\n\nBefore.\n\n<!-- begin: networks -->\nold\n<!-- end: networks -->\n\nAfter.\n"
    )
    pytest.importorskip("matplotlib")
    page.main(["page", str(results), f"--page={written}"])
    text = written.read_text()
    assert text.startswith("# Title\n\nBefore.\n")
    assert text.endswith("\n\nAfter.\n")
    assert "old" not in text
    assert (
        "| LeNet | 128 | 2560.0 | PyTorch contiguous | **2.00 x** | 2.00 x | 20% | 1.00 x |" in text
    )
    assert "- LeNet, Keras on JAX: losses differ" in text
    assert (tmp_path / "figures" / "performance.png").stat().st_size > 1000


@pytest.fixture
def written(tmp_path, monkeypatch):
    """The page that is made of records, one file each, without the chart."""
    monkeypatch.setattr(page, "draw", lambda record, target: None)

    def write(*records: dict[str, Any]) -> str:
        files = [str(tmp_path / f"{number}.json") for number in range(len(records))]
        for file, each in zip(files, records):
            results.write(each, Path(file))
        page.main(["page", "--page", str(tmp_path / "page.md"), *files])
        return (tmp_path / "page.md").read_text()

    return write


def test_page_of_several_runs_has_each_network_from_the_last_that_measured_it(written):
    runs = record("lenet"), record("resnet18"), record("lenet", ours=0.025)
    for number, run in enumerate(runs):
        run |= {"command": f"python run {number}", "gemm": {"torch": 200.0 + number}}
    text = written(*runs)
    lenet, resnet = (line for line in text.splitlines() if "**" in line)
    assert lenet.startswith("| LeNet | 128 | 5120.0 | PyTorch contiguous | **4.00 x** |")
    assert resnet.startswith("| ResNet-18 | 128 | 2560.0 | PyTorch contiguous | **2.00 x** |")
    assert "`python run 0`" not in text
    assert text.index("`python run 1` at commit") < text.index("`python run 2` at commit")
    assert "At most 3 turns or 1 s of each" in text
    assert "in the same run: torch 201 to 202 GFLOP/s" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"processor": "Z80"}, "0.json was measured with processor .*, .*1.json with Z80: give "),
        ({"versions": {"jax": "0.1"}}, "1.json with .*: give results of one machine"),
    ],
)
def test_figures_of_different_machines_are_not_put_on_one_page(written, change, message):
    other = record("resnet18")
    other["machine"] |= change
    with pytest.raises(UserError, match=message):
        written(record("lenet"), other)
    # The first counts no more where the other has measured all of it.
    other["rows"] = [row | {"network": "lenet"} for row in other["rows"]]
    assert "| LeNet |" in written(record("lenet"), other)


def test_page_tells_n_where_fewer_turns_were_kept_than_were_planned(written):
    assert "(n = " not in written(record(rounds=3))
    text = written(record(rounds=5))
    assert "| 2560.0 (n = 3) | PyTorch contiguous | **2.00 x** | 2.00 x (n = 3) |" in text


def test_page_takes_every_row_of_a_table_from_the_last_that_has_it(written):
    def run(*rows: list[str]) -> dict[str, Any]:
        table = {"head": ["", "ms"], "rows": list(rows)}
        return results.about("ops", machine.cores()) | {"table": table}

    text = written(run(["conv", "1.5"], ["pool", "2.5"]), run(["conv", "1.0"]))
    assert "|  | ms |\n| --- | --- |\n| conv | 1.0 |\n| pool | 2.5 |\n" in text


def test_file_of_results_is_there_when_there_are_results(tmp_path):
    path = results.path_for(str(tmp_path / "new" / "results.json"))
    assert list(tmp_path.rglob("*")) == [tmp_path / "new"]
    for number in range(2):
        results.write({"number": number}, path)
        assert json.loads(path.read_text()) == {"number": number}
    assert list(path.parent.iterdir()) == [path]


def test_results_that_cannot_be_written_whole_leave_those_that_were_there(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    results.write({"number": 0}, path)

    def fill(self: Path, text: str) -> None:
        self.write_bytes(text[:5].encode())
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_text", fill)
    with pytest.raises(OSError, match="No space"):
        results.write({"number": 1}, path)
    assert json.loads(path.read_text()) == {"number": 0}
    assert list(tmp_path.iterdir()) == [path]


def test_results_that_nobody_wants_leave_the_device_that_takes_them():
    if not Path("/dev/null").is_char_device():
        pytest.skip("this system has no /dev/null")
    results.write({}, results.path_for("/dev/null"))
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"x.json is no JSON \(.*\): give files that a benchmark has written"),
        (b"\x80", r"x.json is no JSON \(.*\): give files"),
        (b"[]", "x.json holds no results: it does not say of which kind"),
        (None, "x.json holds no results: No such file"),
    ],
)
def test_page_names_a_file_that_holds_no_results(tmp_path, content, message):
    if content is not None:
        (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        page.main(["page", str(tmp_path / "x.json")])


def test_page_of_a_result_with_a_table_of_its_own_shows_it(tmp_path):
    written = tmp_path / "performance.md"
    own = {"table": {"head": ["op", "ms"], "rows": [["conv", 1.5]]}}
    page.write(written, {"ops": results.about("ops", machine.cores()) | own})
    assert "<!-- begin: ops -->\n| op | ms |\n| --- | --- |\n| conv | 1.5 |" in written.read_text()


@pytest.mark.parametrize(
    ("main", "word", "message"),
    [
        (networks.main, "--networks=lenett", "--networks has 'lenett': did you mean 'lenet'?"),
        (networks.main, "--competitors=line", "did you mean 'linen'?"),
        (networks.main, "--only=both", "--only=both: expected|--only"),
        (networks.main, "--rounds=1", "rounds"),
        (networks.main, "--threads=4096", "--threads=4096: this process may use"),
        (networks.main, "--out=/dev/null/file.json", "--out=/dev/null/file.json: "),
        (accuracy.main, "--targets=92", "--targets"),
        (accuracy.main, "--seeds=0", "seeds"),
        (gpu.main, "--networks=alexnet", "--networks has 'alexnet'"),
        (page.main, "--page=x.md", "no results are given"),
        (page.main, "--page", "Missing value for flag --page"),
        (page.main, "--pag=x.md", "unknown flag --pag; did you mean '--page'"),
    ],
)
def test_bad_value_is_one_clear_line(main: Any, word: str, message: str):
    with pytest.raises(UserError, match=message) as caught:
        main(["benchmarks", word])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("module", [accuracy, choose, contest, machine, page, timing])
def test_examples_of_the_module_are_right(module: ModuleType):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


# -- Operations ------------------------------------------------------------------------------------


@pytest.fixture
def measured(monkeypatch):
    """Makes these the turns of all players, operation by operation; none is taken."""

    def install(module: ModuleType, *operations: dict[str, timing.Series]) -> None:
        left = list(operations)

        def interleaved(players: Any, plan: timing.Plan, watch: Any) -> dict[str, timing.Series]:
            if not left:
                raise KeyboardInterrupt
            return left.pop(0)

        monkeypatch.setattr(module, "interleaved", interleaved)
        monkeypatch.setattr(module, "keep_freed_memory", lambda: None)

    return install


DISTURBED = timing.Series(dropped=6)


def test_table_of_algorithms_leaves_out_what_was_disturbed_and_goes_on(tmp_path, measured, capsys):
    from convjax.ops.choice import read_table

    lax, quick = timing.Series([0.2]), timing.Series([0.1])
    measured(
        choose,
        {"lax": DISTURBED, "taps": DISTURBED},
        {"lax": DISTURBED, "taps": quick},
        {"lax": lax, "taps": quick, "dot": timing.Series(error="out of memory")},
    )
    out = tmp_path / "algorithms.txt"
    with pytest.raises(KeyboardInterrupt):  # in the second band
        choose.main(["choose", "--only=dense 1", f"--out={out}"])
    (row,) = read_table(out.read_text(), "table")
    assert (row.operation, row.window, row.stride) == ("conv_weight", (1, 1), (1, 1))
    assert row.algorithm == "taps"
    told = capsys.readouterr().out
    assert told.count("is left out") == 2
    assert told.count("  lax has no figure: every one of 6 turns was disturbed") == 2
    assert "  dot has no figure: out of memory" in told
    assert list(tmp_path.iterdir()) == [out]


def test_single_operations_go_on_where_a_player_has_no_figure(tmp_path, measured, capsys):
    def player(*arrays: np.ndarray) -> Any:
        return [np.ones(1)], lambda: 1.0

    each = ops.Measurement("relu", [], {"plain": player, "convjax": player})
    failed = timing.Series(error="out of memory")
    measured(
        ops,
        {"plain": failed, "convjax": timing.Series([0.1])},
        {"plain": timing.Series([0.3]), "convjax": DISTURBED},
    )
    assert ops.cells(ops.measured(each, 1)) == [
        *("relu", "100.00 ms", "-", ""),
        *("100.00 ms to 100.00 ms", "1"),
    ]
    out = tmp_path / "ops.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "measurements", lambda: [each])
        ops.main(["ops", f"--out={out}"])
    assert json.loads(out.read_text())["table"]["rows"] == [
        ["relu", "-", "300.00 ms", "", "-", "0"]
    ]
    assert "  convjax: every one of 6 turns was disturbed" in capsys.readouterr().out


# -- Time to accuracy ------------------------------------------------------------------------------


def run(seed: int, accuracies: list[float], others: float = 0.0) -> dict[str, Any]:
    """A run that was evaluated once a second."""
    seconds = [float(n + 1) for n in range(len(accuracies))]
    curve = {"seconds": seconds, "accuracies": accuracies, "first_step": 0.5, "steps": 6}
    return {"with": "convjax", "seed": seed, "others": others, **curve}


def test_seconds_to_accuracy_are_medians_of_the_runs_that_reach_it_undisturbed():
    runs = [
        run(0, [0.8, 0.9, 0.93]),
        run(1, [0.9, 0.91, 0.91]),
        run(2, [0.7, 0.8, 0.92]),
        run(3, [0.99, 0.99, 0.99], others=0.5),
    ]
    result = accuracy.summary(runs, [0.9, 0.92, 0.95])["convjax"]
    assert result["reached"]["0.9"] == {"n": 3, "median": 2.0, "min": 1.0, "max": 3.0}
    assert result["reached"]["0.92"] == {"n": 2, "median": 3.0, "min": 3.0, "max": 3.0}
    assert result["reached"]["0.95"] == {"n": 0}
    assert (result["n"], result["disturbed"]) == (3, 1)
    assert result["accuracy"] == pytest.approx((0.93 + 0.91 + 0.92) / 3)


def test_both_trainers_begin_with_the_same_network_and_see_the_same_images():
    from convjax.pages import load

    config = load("configs/fashion_mini.py")
    config.batch_size, config.epochs = 8, 1e-3
    begin = trainers.start(config)
    ours, theirs = trainers.Convjax(config, begin), trainers.Torch(config, begin)
    assert contest.deviation(theirs.logits(16), ours.logits(16)) < 1e-5
    assert len(begin.rates) == ours.made.plan.steps == 1
    curve = theirs.run(1)
    assert len(curve.accuracies) == len(curve.seconds) == 1


def test_clock_of_a_run_stands_still_while_it_is_evaluated():
    curve = trainers.timed(
        steps=6,
        epoch=4,
        evaluations=2,
        take_step=lambda number: time.sleep(0.01),
        wait=lambda: None,
        judge=lambda: time.sleep(0.2) or 0.5,
    )
    assert len(curve.seconds) == 3  # after 2, 4 and 6 steps
    assert 0.06 <= curve.seconds[-1] < 0.2


def test_crops_and_flips_of_pytorch_are_those_of_the_config():
    import torch

    from convjax.config import Augment, Experiment

    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (400, 4, 5, 1), np.uint8)
    theirs: Any = object.__new__(trainers.Torch)
    theirs.config = Experiment(augment=Augment(("crop(1)", "flip")))
    theirs.draw = torch.Generator().manual_seed(0)
    changed = theirs._changed(images).numpy()
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    seen = np.zeros((2, 3, 3), int)
    for image, found in zip(padded, changed):
        windows = {
            (flip, top, left): image[top : top + 4, left : left + 5][:, :: 1 - 2 * flip]
            for flip, top, left in np.ndindex(2, 3, 3)
        }
        (place,) = (at for at, window in windows.items() if np.array_equal(window, found))
        seen[place] += 1
    assert seen.sum() == 400
    assert 8 <= seen.min() <= seen.max() <= 40  # of 18 places, 22 each
    wrong = Experiment(augment=Augment(("cutout(8)",)))
    wrong.optimizer.name = "adamw"
    with pytest.raises(UserError, match=r"crop\(N\) and flip, not 'cutout\(8\)'"):
        trainers.checked(wrong)


def test_gpu_without_a_gpu_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpu, "alone", lambda target, cores: None)  # What both libraries would say.
    with pytest.raises(UserError, match="sees no GPU"):
        gpu.main(["gpu", "--networks=lenet"])
