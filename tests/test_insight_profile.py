"""A profile names the layers that the time went to, and changes nothing of the run."""

import io
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.profiler import ProfileData

from convjax import conv, dense, flatten, ops, relu, run, serial
from convjax.compiler import compiler_options
from convjax.config import Data, Experiment, Model, Optimizer, UserError
from convjax.data import Dataset
from convjax.insight.inspection.operations import operations
from convjax.insight.inspection.program import innermost
from convjax.insight.inspection.trace import times_of
from convjax.layer import Context
from convjax.runlog import RunLog

PATHS = frozenset(("stem", "stem/conv1", "head"))
HLO = """HloModule jit_step, is_scheduled=true

%fused (param_0: f32[8]) -> f32[8] {
  %param_0 = f32[8]{0} parameter(0)
  ROOT %add.9 = f32[8]{0} add(%param_0, %param_0), metadata={op_name="jit(step)/jvp(head)/add"}
}

ENTRY %main (p.1: f32[8]) -> f32[8] {
  %p.1 = f32[8]{0} parameter(0), metadata={op_name="params['head']['kernel']"}
  %fusion.1 = f32[8]{0} fusion(%p.1), kind=kLoop, calls=%fused, \
metadata={op_name="jit(step)/jvp(head)/add"}
  %dot.2 = (f32[8]{0}, s32[]) dot(%fusion.1, %p.1), lhs_contracting_dims={0}
  %while.3 = f32[8]{0} while(%dot.2), condition=%c, body=%b, \
metadata={op_name="jit(step)/transpose(jvp(stem))/conv1/while"}
  %copy.4 = f32[8]{0} copy(%p.1)
  %multiply.5 = f32[8]{0} multiply(%copy.4, %p.1), \
metadata={op_name="jit(step)/transpose(jvp(stem))/conv1/mul"}
  ROOT %subtract.6 = f32[8]{0} subtract(%while.3, %multiply.5), metadata={op_name="jit(step)/sub"}
}
"""


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ("fusion.1", ("head", False)),
        ("dot.2", ("head", False)),  # without a name: of what it is computed from
        ("while.3", ("stem/conv1", True)),
        ("copy.4", ("stem/conv1", True)),  # of a parameter alone: of what it is computed for
        ("subtract.6", ("", False)),
    ],
)
def test_operations_are_of_the_layer_whose_scope_they_come_from(operation, expected):
    assert operations(HLO).layer(operation, PATHS) == expected


def test_scopes_are_found_below_any_transformations():
    name = "jit(loss)/jvp(stem)/vmap()/vmap(jit(_fold))/conv1/while/body/add"
    assert innermost(name, PATHS) == "stem/conv1"


def space(*events):
    """A profile with one line of (name, start, duration, module), in nanoseconds."""
    names = sorted({name for name, *_ in events})
    metadata = "".join(
        f'event_metadata {{ key: {n + 1} value {{ id: {n + 1} name: "{name}" }} }}\n'
        for n, name in enumerate(names)
    )
    listed = "".join(
        f"events {{ metadata_id: {names.index(name) + 1} offset_ps: {start * 1000} "
        f"duration_ps: {duration * 1000} "
        f'stats {{ metadata_id: 1 str_value: "{name}" }} '
        f'stats {{ metadata_id: 2 str_value: "{module}" }} }}\n'
        for name, start, duration, module in events
    )
    stats = "".join(
        f'stat_metadata {{ key: {n} value {{ id: {n} name: "{name}" }} }}\n'
        for n, name in ((1, "hlo_op"), (2, "hlo_module"))
    )
    text = (
        f'planes {{ name: "/host:CPU" lines {{ name: "a thread" {listed} }} {metadata} {stats} }}'
    )
    return ProfileData.text_proto_to_serialized_xspace(text)


def test_times_are_those_of_operations_without_what_lies_within_them(tmp_path):
    file = tmp_path / "host.xplane.pb"
    file.write_bytes(
        space(
            ("while.3", 0, 1000, "jit_step"),  # a loop: its time is that of its operations
            ("multiply.5", 100, 300, "jit_step"),
            ("fusion.1", 200, 50, "jit_step"),
            ("dot.2", 2000, 70, "jit_step"),
            ("subtract.6", 3000, 30, "jit_step"),
            ("dot.2", 4000, 9999, "jit_other"),  # of another program with an operation called so
            ("PjitFunction", 5000, 9999, ""),
        )
    )
    found = times_of(file, operations(HLO), PATHS, steps=2)
    assert found.forward == pytest.approx({"head": (50 + 70) / 2 * 1e-9})
    assert found.backward == pytest.approx({"stem/conv1": 250 / 2 * 1e-9})
    assert found.rest == pytest.approx(30 / 2 * 1e-9)
    assert found.whole == pytest.approx(400 / 2 * 1e-9)
    assert found.dearest(1) == ["stem/conv1"]


def test_the_layer_that_computes_the_most_is_the_dearest_in_a_real_profile(tmp_path):
    net = serial(small=conv(2, 1), large=conv(64, 5), pool=ops.global_avg_pool, head=dense(2))
    images = np.random.default_rng(0).standard_normal((8, 24, 24, 8)).astype(np.float32)
    params, state = net.init(jax.random.key(0), images)

    def loss(params):
        return jnp.sum(net.apply(params, state, images, Context(train=True))[0] ** 2)

    step = jax.jit(jax.grad(loss), compiler_options=compiler_options("cpu"))
    compiled = step.lower(params).compile()
    jax.block_until_ready(compiled(params))
    with jax.profiler.trace(tmp_path):
        for _ in range(3):
            jax.block_until_ready(compiled(params))
    (file,) = tmp_path.rglob("*.xplane.pb")
    text = compiled.as_text()
    assert text is not None
    found = times_of(file, operations(text), frozenset(net.parts), steps=3)
    assert found.dearest(1) == ["large"]
    assert found.forward["large"] > 0
    assert found.backward["large"] > 0
    assert found.forward["large"] + found.backward["large"] > 0.6 * found.whole


# -- A run -----------------------------------------------------------------------------------------


def pictures(split, data_dir):
    """Sixty pictures to train on, and ten to test."""
    size = {"train": 60, "test": 10}[split]
    rng = np.random.default_rng(size)
    images = rng.integers(0, 255, (size, 6, 6, 1)).astype(np.uint8)
    return Dataset(images, rng.integers(0, 2, size).astype(np.int32), ("a", "b"))


def tiny(classes):
    return serial(stem=conv(4, 3), then=relu, flat=flatten, head=dense(classes))


def trained(folder, steps_per_call=1, **how):
    config = Experiment(
        name="tiny",
        epochs=2,
        batch_size=10,
        steps_per_call=steps_per_call,
        model=Model("test_insight_profile:tiny"),
        data=Data("test_insight_profile:pictures"),
        optimizer=Optimizer("sgd", 0.1),
    )
    out = io.StringIO()
    run.train(config, folder, out=out, **how)
    return RunLog(folder).record(), out.getvalue()


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("profiled")
    return folder, *trained(folder, profile=4)


def test_a_profile_tells_layers_work_memory_and_waiting(profiled):
    folder, record, text = profiled
    assert len([*(folder / "profile").rglob("*.xplane.pb")]) == 1
    found = record["profile"]
    assert (found["steps"], found["first"]) == (4, 3)
    # Forward and the gradient of the kernel for all; that of its input for the head alone.
    assert found["multiply_adds_per_step"] == 10 * (2 * 36 * 9 * 4 + 3 * 144 * 2)
    assert found["multiply_adds_per_second"] == pytest.approx(
        found["multiply_adds_per_step"] / found["seconds_per_step"]
    )
    assert {"stem", "head"} <= {*found["layers"]} <= {"stem", "then", "flat", "head"}
    assert found["memory_bytes"] > 10 * 36 * 4 * 4  # what the convolution puts out
    assert 0 <= found["waiting_share"] < 1
    assert re.search(r"profile of steps 3 to 6: .* a step, of which it waits for images", text)
    assert re.search(r"\nstem +[\d.]+ [mµ]?s", text)
    assert json.dumps(found)


def test_a_profile_changes_nothing_of_what_is_trained(profiled, tmp_path):
    record, _ = trained(tmp_path / "plain")
    assert record["digest"] == profiled[1]["digest"]
    assert not (tmp_path / "plain" / "profile").exists()


def test_a_run_that_ends_first_tells_of_the_steps_that_there_were(tmp_path):
    record, text = trained(tmp_path / "run", steps_per_call=3, profile=100)
    assert (record["profile"]["steps"], record["profile"]["first"]) == (6, 7)
    assert record["profile"]["multiply_adds_per_step"] == 10 * (2 * 36 * 9 * 4 + 3 * 144 * 2)
    assert "profile of steps 7 to 12" in text


def test_a_run_that_is_too_short_says_that_there_is_no_profile(tmp_path):
    record, text = trained(tmp_path / "run", steps_per_call=6, profile=2)
    assert "profile" not in record
    assert "no step was profiled" in text


def test_a_profile_that_cannot_be_written_costs_the_run_nothing(profiled, tmp_path, monkeypatch):
    stop = jax.profiler.stop_trace

    def stop_on_a_full_disk():
        stop()
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: No space left on device")

    monkeypatch.setattr(jax.profiler, "stop_trace", stop_on_a_full_disk)
    record, text = trained(tmp_path / "run", profile=4)
    assert "profile" not in record
    assert re.search("warning: there is no profile in .*No space left on device", text)
    assert record["digest"] == profiled[1]["digest"]


def test_a_run_that_has_ended_says_that_nothing_is_profiled(tmp_path):
    trained(tmp_path / "run")
    record, text = trained(tmp_path / "run", profile=4)
    assert "profile" not in record
    assert text == "no step was profiled: the run has ended already\n"


def test_a_number_of_steps_below_zero_is_refused(tmp_path):
    with pytest.raises(UserError, match="--profile=-1: give the number of steps"):
        run.train(Experiment(), tmp_path / "run", profile=-1)
