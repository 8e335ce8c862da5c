"""Which engine trains: its workers' shares of the machine, and what hangs or dies among them."""

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from convjax.config import UserError
from convjax.sweep import processes
from convjax.sweep.engines import Engine, options
from convjax.sweep.processes import Workers, environment_of, shares
from convjax.sweep.store import Store
from convjax.sweep.trial import Trial


@pytest.fixture
def machine(monkeypatch):
    """machine(cores, gpus): as though this one had these."""
    for name in ("JAX_PLATFORMS", "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_PREALLOCATE"):
        monkeypatch.delenv(name, raising=False)

    def has(cores, gpus):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(cores))
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)

    return has


def test_workers_share_the_cores_and_the_gpus(machine):
    machine({3, 4, 5, 6}, "")
    assert [share["cores"] for share in shares(2)] == ["3,5", "4,6"]
    assert [share["cores"] for share in shares(6)] == ["3", "4", "5", "6", "3", "4"]
    machine({3, 4, 5, 6}, "2,7")
    assert [share["gpus"] for share in shares(3)] == ["2", "7", "2"]
    machine({0}, "0,1,2")
    assert [share["gpus"] for share in shares(2, all_gpus=True)] == ["0,2", "1"]
    assert [share["gpus"] for share in shares(1, all_gpus=True)] == ["0,1,2"]


def test_auto_has_a_worker_for_each_core_but_where_there_are_accelerators(machine, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(processes, "_DEV", Path("/nowhere"))
    machine({3, 4, 5, 6}, "")
    assert Engine("auto").count("jit") == 4
    assert Engine("auto").of(3, "jit").workers == 3
    assert Engine("auto").count("sharded") == Engine("vectorised").count("jit") == 1
    assert Engine("auto", workers=2).of(1, "jit").workers == 2
    machine({3, 4, 5, 6}, "0,1")
    assert Engine("auto").count("jit") == 1


def test_a_tpu_is_an_accelerator_unless_jax_is_told_to_leave_it(machine, monkeypatch, tmp_path):
    machine({0}, "")
    monkeypatch.setattr(processes, "_DEV", tmp_path)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    assert not processes.has_accelerators()
    (tmp_path / "accel0").touch()
    assert processes.has_accelerators()
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert not processes.has_accelerators()


def test_workers_that_share_a_gpu_take_together_less_than_all_of_its_memory(machine, monkeypatch):
    machine({0}, "2,7")
    taken = [environment_of(share) for share in shares(5)]
    assert [each["CUDA_VISIBLE_DEVICES"] for each in taken] == ["2", "7", "2", "7", "2"]
    of_first = [each for each in taken if each["CUDA_VISIBLE_DEVICES"] == "2"]
    assert sum(float(each["XLA_CLIENT_MEM_FRACTION"]) for each in of_first) == pytest.approx(0.9)
    assert taken[1]["XLA_CLIENT_MEM_FRACTION"] == "0.450"
    # One that has a GPU for itself takes what JAX takes; and what somebody has set stays.
    assert list(map(environment_of, shares(2))) == [
        {"CUDA_VISIBLE_DEVICES": "2"},
        {"CUDA_VISIBLE_DEVICES": "7"},
    ]
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    assert all("XLA_CLIENT_MEM_FRACTION" not in environment_of(share) for share in shares(5))


def test_an_engine_has_a_worker_for_each_gpu_or_one_for_all_of_them(machine):
    machine(range(8), "0,1,2,3")
    assert Engine("processes").count("jit") == 4
    assert Engine("processes").count("sharded") == 1
    assert [share["gpus"] for share in Engine("processes").shares("sharded")] == ["0,1,2,3"]
    assert [share["gpus"] for share in Engine("auto").shares("jit")] == ["0,1,2,3"]
    assert [share["gpus"] for share in Engine("vectorised", 2).shares("jit")] == ["0,2", "1,3"]
    machine(range(8), "")
    assert Engine("processes").count("jit") == Engine("vectorised").count("jit") == 1


def test_gpus_that_stand_idle_are_told(machine):
    machine({0, 1}, "0,1,2")
    idle = Engine("processes", workers=1).idle("jit")
    assert idle == "GPUs 1, 2 stand idle, as a worker trains on one: give --workers=3"
    assert Engine("processes", workers=1).described("jit").splitlines() == [
        "processes: 1 worker, cores 0,1, GPUs 0",
        idle,
    ]
    assert Engine("processes").idle("jit") is None
    assert Engine("auto").idle("jit") is None


def test_as_many_trials_wait_as_workers_or_the_places_of_a_program_can_take(machine):
    machine(range(8), "")
    assert Engine("processes", workers=3).ahead == 3
    assert Engine("vectorised=16").ahead == 16
    assert Engine("vectorised=2", workers=4).ahead == 4
    assert Engine("ray", workers=40).ahead == 40


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (Engine("vectorized"), "--engine=vectorized: did you mean 'vectorised'"),
        (Engine("vectorised=0"), "--engine=vectorised=0: give a number"),
        (Engine("auto=4"), "--engine=auto=4: only vectorised takes one, as --engine=vectorised=8"),
        (Engine("cluster"), "--engine=cluster: give --engine=ray or --engine=slurm"),
        (Engine("slurm"), "--engine=slurm: give --workers=N"),
        (Engine("auto", workers=0), "--workers=0: give 1 or more"),
        (Engine("auto", hang_after=0.5), "--hang_after=0.5: give 1 second"),
        (Engine("auto", address="here:6379"), "--address .* --engine=ray, not auto"),
        (Engine("ray", 2, slurm={"partition": "gpu"}), "--slurm .* --engine=slurm, not of ray"),
        (Engine("processes", gpus=1), "--cpus and --gpus are for ray and slurm"),
    ],
)
def test_an_engine_that_cannot_be_is_refused(engine, message):
    with pytest.raises(UserError, match=message):
        engine.check()


def test_options_of_slurm_are_written_with_an_equals_sign():
    assert options(["partition=gpu", "time=120", "comment=a=b"]) == {
        "partition": "gpu",
        "time": 120,
        "comment": "a=b",
    }
    with pytest.raises(UserError, match="--slurm=gpu: give --slurm=KEY=VALUE"):
        options(["gpu"])


@pytest.fixture
def begun(tmp_path):
    """A store with two trials, of which a worker has the first; the worker sleeps."""
    trials = [Trial(f"{number:064x}"[::-1], {"n": number}, 0, {}, number) for number in range(2)]
    with Store(tmp_path) as store:
        store.add(store.sweep({"objective": "max test accuracy"}), trials)
        command = [sys.executable, "-c", "import time; time.sleep(1000)"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as process:
            workers = Workers(store, 1, 1, hang_after=0.05)
            workers._running[0] = ("worker", process)
            claim = store.claim(1, "worker", closes=False)
            time.sleep(0.1)
            yield store, workers, claim
            process.kill()


def test_a_trial_that_hangs_is_closed_as_hung_with_its_worker(begun):
    store, workers, _ = begun
    workers._end_hanging()
    first, second = store.rows(1)
    [attempt] = first.attempts
    assert (attempt.outcome, first.state) == ("hung", "waiting")
    assert attempt.cause is not None
    assert attempt.cause.startswith("no line of metrics in ")
    assert (second.state, second.attempts) == ("waiting", [])


def test_a_trial_begun_as_its_worker_is_ended_for_another_is_not_taken_to_hang(begun, monkeypatch):
    store, workers, claim = begun
    kill, later = processes._kill, []

    def finish_and_go_on(process):
        with claim:
            claim.finish({"value": 1})
        later.append(store.claim(1, "worker", closes=False))
        kill(process)

    monkeypatch.setattr(processes, "_kill", finish_and_go_on)
    workers._end_hanging()
    first, second = store.rows(1)
    assert [each.outcome for each in first.attempts] == ["finished"]
    assert [(each.outcome, second.state) for each in second.attempts] == [
        ("interrupted", "waiting")
    ]
    later[0]._lease.close()


def test_a_worker_that_goes_on_among_several_trials_does_not_hang(begun, tmp_path):
    store, workers, claim = begun
    (claim.folder / "metrics.jsonl").write_text("{}")
    late = time.time() + 1000
    os.utime(claim.folder / "metrics.jsonl", (late, late))
    other = store.claim(1, "worker", closes=False)
    time.sleep(0.1)
    workers._end_hanging()
    assert store.counts(1) == {"running": 2}
    for each in (claim, other):
        each._lease.close()


def test_a_worker_that_does_not_end_with_the_sweep_is_ended_at_no_cost_to_its_trial(
    begun, monkeypatch
):
    store, workers, _ = begun
    monkeypatch.setattr(processes, "_PARTING", 0.1)
    with workers:
        [(_, process)] = workers._running.values()
    assert process.returncode == -9
    [attempt] = store.rows(1)[0].attempts
    assert (attempt.outcome, attempt.cause) == ("interrupted", "did not end in 0 s")
    assert store.counts(1) == {"waiting": 2}


def test_workers_that_hung_are_not_taken_for_ones_that_end_as_they_begin(begun, monkeypatch):
    _, workers, _ = begun
    workers._end_hanging()
    monkeypatch.setattr(processes, "_STILLBORN", 1)  # so that the first one would end the sweep
    names = (f"worker{number}" for number in itertools.count())
    sleeper = [sys.executable, "-c", "import time; time.sleep(1000)"]

    def started(share):
        process = subprocess.Popen(sleeper, stdin=subprocess.PIPE, start_new_session=True)
        return next(names), process

    monkeypatch.setattr(workers, "_started", started)
    workers.look_after()
    [(name, process)] = workers._running.values()
    with process:
        assert (name, process.poll()) == ("worker0", None)
        process.kill()


def test_a_worker_that_got_ready_is_taken_for_its_cores_and_one_that_is_not_wanted_is_ended(
    tmp_path, monkeypatch
):
    reads = [sys.executable, "-c", "import sys; input(); print(input(), flush=True); input()"]

    def start(share, engine, config, out, err):
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        process: Any = subprocess.Popen(reads, bufsize=0, **pipes, start_new_session=True)
        process.stdin.write(b"null\n")
        return process

    monkeypatch.setattr(processes, "_start", start)
    with (
        Store(tmp_path) as store,
        processes.begun([{"cores": "0"}, {"cores": "1"}], "auto", {}) as (ready),
    ):
        processes_of: list[Any] = [each.process for each in ready]
        left, taken = processes_of
        workers = Workers(store, 7, 1, hang_after=9.0, ready=ready)
        name, process = workers._started({"cores": "1", "gpus": "", "memory": ""})
        assert process is taken
        assert [each.cores for each in ready] == ["0"]
        job = json.loads(taken.stdout.readline())
        assert (job["folder"], job["sweep"], job["name"]) == (str(tmp_path), 7, name)
    assert (left.returncode, taken.poll()) == (-9, None)
    for each in (left, taken):
        each.stdin.close()
        each.stdout.close()
    assert taken.wait(60) == 1  # Its input has ended.


def test_what_workers_print_is_told_line_by_line_and_what_was_printed_before_is_not(tmp_path):
    told, out = [], tmp_path / "logs" / "workers.txt"
    with Store(tmp_path) as store:
        out.parent.mkdir()
        out.write_bytes(b"from another launch\n")
        workers = Workers(store, 1, 1, hang_after=9.0, told=told.append)
        workers._hear()
        with open(out, "ab", buffering=0) as file:
            for part in (b"one\ntw", b"o\n", "\u00fc".encode()[:1]):
                file.write(part)
                workers._hear()
            assert told == ["one", "two"]
            file.write("\u00fc".encode()[1:] + b"\n")
        workers._hear()
    assert told == ["one", "two", "\u00fc"]
