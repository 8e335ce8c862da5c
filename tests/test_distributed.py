"""Several processes: what they are told, how they meet, and how they end."""

import re
import signal
import socket

import pytest
from processes import outputs, run_together, start_together

from convjax import distributed
from convjax.config import UserError
from convjax.distributed import launched
from convjax.runlog import RunLog

SLURM = {"SLURM_STEP_NODELIST": "n[1-4]", "SLURM_PROCID": "3", "SLURM_NTASKS": "4"}
OPEN_MPI = {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.0.0.1:349", "OMPI_COMM_WORLD_SIZE": "2"}


def test_without_arguments_a_process_that_nobody_launched_is_the_only_one():
    distributed.start(environment={})
    assert distributed.leads()
    distributed.barrier("alone")
    distributed.stop()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("h:1", None, None), "--coordinator=h:1 without --num_processes and --process_id: give"),
        (("h:1", 2, None), "--coordinator=h:1, --num_processes=2 without --process_id: give all"),
        ((None, 2, 0), "--num_processes=2, --process_id=0 without --coordinator"),
        (("10.0.0.1", 2, 0), "--coordinator=10.0.0.1: give HOST:PORT of process 0"),
        ((":80", 2, 0), "--coordinator=:80: give HOST:PORT"),
        (("h:70000", 2, 0), "--coordinator=h:70000: give HOST:PORT"),
        (("h:1", 0, 0), "--num_processes=0: give 1 or more"),
        (("h:1", 2, 2), "--process_id=2: give a number from 0 to 1, as --num_processes=2"),
        (("h:1", 2, -1), "--process_id=-1: give a number from 0 to 1"),
    ],
)
def test_flags_that_are_no_whole_are_refused_in_one_line(given, message):
    with pytest.raises(UserError) as error:
        distributed.start(*given)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        (SLURM, True),
        (SLURM | {"SLURM_NTASKS": "1"}, False),
        # The batch script itself, which is no step.
        ({key: SLURM[key] for key in ("SLURM_NTASKS", "SLURM_PROCID")}, False),
        (OPEN_MPI, True),
        (OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1"}, False),
        ({"TPU_ML_PLATFORM": "JAX"}, True),
        ({"TPU_ML_PLATFORM": "JAX", "TPU_SKIP_MDS_QUERY": "1"}, False),
    ],
)
def test_several_processes_are_known_by_what_launched_them(environment, expected):
    assert launched(environment) is expected


def test_a_port_that_is_taken_is_told_in_one_line():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--coordinator=h:{port}: process 0 cannot listen"):
            distributed.start(f"h:{port}", 2, 0)


def test_nobody_at_the_address_is_told_in_one_line(monkeypatch):
    monkeypatch.setattr(distributed, "_MEETING", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(UserError, match=f"--coordinator={address}: nobody listens there"):
        distributed.start(address, 2, 1)


def test_ctrl_c_ends_a_process_that_works_with_others():
    processes = start_together("tests/steps_without_end.py", devices=1)
    try:
        for process in processes:
            assert process.stdout is not None
            assert any("the sum is" in line for line in process.stdout), "it took no step"
        processes[1].send_signal(signal.SIGINT)
        assert processes[1].wait(60) == 130
    finally:
        for process in processes:
            process.kill()
        outputs(processes)


def test_sigterm_to_any_process_saves_and_ends_all_of_them_and_the_run_goes_on(tmp_path):
    told = run_together("tests/run_together.py", str(tmp_path / "whole"), "0", "page")
    page = tmp_path / "whole" / "report.html"
    assert f"report: {page}\n" in told[0]
    assert "What is taken for what" in page.read_text("utf-8"), "the network was opened"
    processes = start_together("tests/run_together.py", str(tmp_path / "ended"), "0.3", "page")
    stdout = processes[0].stdout
    assert stdout is not None
    assert any("compiled the evaluation step" in line for line in stdout), "it took no step"
    processes[1].send_signal(signal.SIGTERM)
    written = outputs(processes)
    assert [process.returncode for process in processes] == [143, 143], written
    [step] = {
        re.findall(r"the last good checkpoint is step (\d+) of 10", text)[0] for text in written
    }
    whole, ended = (RunLog(tmp_path / name) for name in ("whole", "ended"))
    assert ended.record()["status"] == "interrupted"
    assert f"python -m experiments.report --workdir={ended.folder}" in written[0]
    assert whole.record()["profile"]["steps"] == 3
    written = run_together("tests/run_together.py", str(ended.folder), "0")
    assert f"going on at step {step} of 10" in written[0]
    assert ended.record()["digest"] == whole.record()["digest"]
