"""Programs: compiled in the background, and kept on disk for the next process where they may be."""

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convjax.compiler import Compiler, spec_on
from convjax.training import parallel

# What a launcher does: the programs of a small step, which sleeps in the compiler for long enough.
PROGRAM = """
import json, os, sys
from convjax.compiler import Compiler, keep_programs

folder = keep_programs()
import jax, jax.numpy as jnp

jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
options = json.loads(os.environ.get("OPTIONS", "{}"))
step = jax.jit(lambda x: jnp.sin(x @ x).sum(), compiler_options=options)
with Compiler() as compiler:
    program = compiler.start(step, jax.ShapeDtypeStruct((9, 9), jnp.float32))
    value = program(jnp.arange(81, dtype=jnp.float32).reshape(9, 9) / 81)
print(json.dumps([str(folder), program.compiled().from_cache, float(value).hex()]))
"""


def launch(**variables):
    """Folder, whether the program came from it, its value, and standard error of a new process."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CONVJAX")}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=kept | {"PYTHONPATH": str(Path(__file__).parent.parent)} | variables,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return *json.loads(run.stdout), run.stderr


def test_the_next_process_reads_the_program_and_computes_the_same_to_the_bit(tmp_path):
    first = launch(CONVJAX_CACHE=str(tmp_path))
    second = launch(CONVJAX_CACHE=str(tmp_path))
    assert first[:2] == (str(tmp_path), False)
    assert second[:2] == (str(tmp_path), True)
    assert first[2] == second[2]
    assert launch(CONVJAX_CACHE="OFF")[:3] == ("None", False, first[2])


def test_other_compiler_options_are_another_program(tmp_path):
    assert launch(CONVJAX_CACHE=str(tmp_path))[1] is False
    options = json.dumps({"xla_cpu_enable_fast_min_max": True})
    assert launch(CONVJAX_CACHE=str(tmp_path), OPTIONS=options)[1] is False
    assert launch(CONVJAX_CACHE=str(tmp_path), OPTIONS=options)[1] is True


def test_programs_are_kept_in_the_folder_of_the_user_unless_the_switch_is_off(tmp_path):
    found = launch(XDG_CACHE_HOME=str(tmp_path))[0]
    assert found == str(tmp_path / "convjax" / "xla")
    assert list(Path(found).glob("*-cache"))
    found = launch(XDG_CACHE_HOME="", HOME=str(tmp_path / "home"))[0]
    assert found == str(tmp_path / "home" / ".cache" / "convjax" / "xla")
    off = tmp_path / "off"
    assert launch(XDG_CACHE_HOME=str(off), CONVJAX_CACHE="off")[0] == "None"
    assert not off.exists()


def test_a_folder_that_jax_was_told_stays_as_it_is(tmp_path):
    chosen = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "jax")}
    assert launch(CONVJAX_CACHE=str(tmp_path / "ours"), **chosen)[0] == str(tmp_path / "jax")
    assert not (tmp_path / "ours").exists()


def test_a_folder_that_cannot_be_made_is_one_warning_and_the_program_runs(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    folder, from_cache, _, errors = launch(CONVJAX_CACHE=str(tmp_path / "file" / "inside"))
    assert (folder, from_cache) == ("None", False)
    [line] = errors.splitlines()
    assert line.startswith("warning: compiled programs are not kept (")
    assert line.endswith("): set CONVJAX_CACHE to a folder, or to off")


def test_a_program_that_was_cut_short_is_compiled_anew_and_kept(tmp_path):
    expected = launch(CONVJAX_CACHE=str(tmp_path))[2]
    for program in tmp_path.glob("*-cache"):
        program.write_bytes(program.read_bytes()[:100])
    for last_use in tmp_path.glob("*-atime"):
        last_use.unlink()
    assert launch(CONVJAX_CACHE=str(tmp_path))[1:] == (False, expected, "")
    assert launch(CONVJAX_CACHE=str(tmp_path))[1:] == (True, expected, "")


@pytest.mark.parametrize("damage", [lambda whole: whole[:100], lambda whole: bytes(len(whole))])
def test_a_program_that_was_damaged_is_one_warning_and_kept_anew(tmp_path, damage):
    expected = launch(CONVJAX_CACHE=str(tmp_path))[2]
    for program in tmp_path.glob("*-cache"):
        program.write_bytes(damage(program.read_bytes()))
    _, from_cache, value, errors = launch(CONVJAX_CACHE=str(tmp_path))
    assert (from_cache, value) == (False, expected)
    assert "Error reading persistent compilation cache entry" in errors
    assert launch(CONVJAX_CACHE=str(tmp_path))[1:] == (True, expected, "")


def test_a_whole_program_that_another_process_reads_meanwhile_stays(tmp_path):
    launch(CONVJAX_CACHE=str(tmp_path))
    (last_use,) = tmp_path.glob("jit__lambda*-atime")
    last_use.write_bytes((2**63).to_bytes(8, "little"))
    options = json.dumps({"xla_cpu_enable_fast_min_max": True})
    assert launch(CONVJAX_CACHE=str(tmp_path), OPTIONS=options)[1] is False
    assert launch(CONVJAX_CACHE=str(tmp_path))[1] is True


class Timed:
    """What stands in for a jitted function: it compiles between two meetings with another one."""

    def __init__(self, meeting, is_kept):
        self.meeting, self.is_kept = meeting, is_kept

    def lower(self):
        return self

    def compile(self):
        self.meeting.wait(60)
        if self.is_kept:
            jax.monitoring.record_event("/jax/compilation_cache/cache_hits")
        self.meeting.wait(60)


def test_of_two_that_compile_at_once_each_knows_whether_its_own_program_was_kept():
    meeting = threading.Barrier(2)
    with Compiler() as one, Compiler() as other:
        programs = one.start(Timed(meeting, True)), other.start(Timed(meeting, False))
        assert [program.compiled().from_cache for program in programs] == [True, False]


class Slow:
    """A program whose compilation takes until it is let go, and tells when it is begun."""

    def __init__(self, name, begun, go):
        self.name, self.begun, self.go = name, begun, go

    def lower(self, *specs):
        return self

    def as_text(self):
        return self.name

    def compile(self):
        self.begun.append(self.name)
        assert self.go.wait(60)
        return lambda: self.name


@pytest.fixture
def kept_in(tmp_path):
    """The folder that programs are kept in."""
    before = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before)


def test_of_two_that_keep_programs_in_one_folder_each_compiles_what_the_other_one_does_not(
    kept_in,
):
    begun, both, go = [], threading.Event(), threading.Event()
    with Compiler() as one, Compiler() as other:
        first = one.start(Slow("step", begun, go))
        while begun != ["step"]:
            both.wait(0.01)
        waits = other.start(Slow("step", begun, go))
        ahead = other.start(Slow("evaluation", begun, go))
        while len(begun) < 2:
            both.wait(0.01)
        assert begun == ["step", "evaluation"]
        go.set()
        assert [program() for program in (first, waits, ahead)] == ["step", "step", "evaluation"]
    assert begun == ["step", "evaluation", "step"]
    assert list(kept_in.iterdir()) == []


def test_what_waits_for_another_process_is_given_up_with_its_compiler(kept_in):
    begun, go = [], threading.Event()
    with Compiler() as one:
        one.start(Slow("step", begun, go))
        while not begun:
            time.sleep(0.01)
        with Compiler() as other:
            waits = other.start(Slow("step", begun, go))
        with pytest.raises(CancelledError):
            waits()
        go.set()
    assert begun == ["step"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux tells threads their cores")
def test_a_process_with_one_core_compiles_on_all_and_takes_steps_on_its_own():
    program = """
import os
cores = os.sched_getaffinity(0)
os.sched_setaffinity(0, {min(cores)})
from convjax.compiler import compile_on
compile_on(cores)
threads = [os.sched_getaffinity(int(each)) for each in os.listdir("/proc/self/task")]
print(os.sched_getaffinity(0) == {min(cores)}, sum(each == cores for each in threads) >= len(cores))
"""
    run = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert run.stdout.split() == ["True", "True"]


@pytest.mark.parametrize("name", sorted(parallel.MAPPERS))
def test_a_program_started_ahead_of_time_is_the_one_that_jit_runs(name):
    mapper = parallel.make(name)

    def mean(weight, batch):
        here = (weight * batch).mean()
        return here if mapper.axis is None else jax.lax.pmean(here, mapper.axis)

    compiled = mapper.compile(mean)
    weight = mapper.replicate(jnp.float32(3))
    batch = mapper.shard(np.arange(16, dtype=np.float32))
    with Compiler() as compiler:
        specs = spec_on(weight, mapper.whole), spec_on(batch, mapper.split)
        program = compiler.start(compiled, *specs)
        np.testing.assert_array_equal(program(weight, batch), compiled(weight, batch))
        assert float(program(weight, batch)) == 3 * 7.5
        assert program.compiled().seconds > 0


def test_what_goes_wrong_in_the_compiler_is_raised_by_the_call():
    broken = jax.jit(lambda x: x + 1, compiler_options={"xla_no_such_option": "1"})
    with Compiler() as compiler:
        program = compiler.start(broken, jax.ShapeDtypeStruct((), jnp.float32))
        with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
            program(jnp.float32(1))


def test_a_program_is_traced_under_the_settings_of_the_caller():
    with Compiler() as compiler, jax.default_matmul_precision("highest"):
        program = compiler.start(
            jax.jit(lambda x: x @ x), jax.ShapeDtypeStruct((4, 4), jnp.float32)
        )
    assert "operand_precision={highest,highest}" in program.compiled().call.as_text()
