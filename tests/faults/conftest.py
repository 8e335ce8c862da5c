"""What the tests that break things share: how often they do it, and a count of what they broke.

    def test_a_flipped_bit_is_found(repeats, observed):
        for number in range(repeats(25, 500)):
            ...
        observed("one bit flipped in a checkpoint", repeats(25, 500))

Short by default; `make faults` is `pytest tests/faults --faults=full`, which runs what is marked
`full` too.
"""

import json
import shutil

import pytest
import started


def pytest_configure(config):
    config.addinivalue_line("markers", "full: takes long, and runs under --faults=full alone")


def pytest_collection_modifyitems(config, items):
    if config.getoption("faults") != "full":
        long = [item for item in items if item.get_closest_marker("full")]
        items[:] = [item for item in items if item not in long]
        config.hook.pytest_deselected(items=long)


@pytest.fixture(scope="session")
def repeats(pytestconfig):
    """repeats(short, full): as often as --faults says."""
    full = pytestconfig.getoption("faults") == "full"
    return lambda short, long: long if full else short


@pytest.fixture
def observed(request):
    """observed(what, count, note): a row of the table of what was broken, if the test passes."""

    def add(what, count, note=""):
        # Reports carry these from the processes of pytest-xdist too.
        request.node.user_properties.append(("broken", [what, count, note]))

    return add


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A folder of compiled programs."""
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, cache):
    """undisturbed(*words): what the small run leaves, with these flags, where nothing happens.

    And what its steps have seen, as its trace says.
    """
    found = {}

    def of(*words):
        if words not in found:
            folder = tmp_path_factory.mktemp("undisturbed")
            trace = folder / "trace"
            started.finish(folder / "run", *words, cache=cache, trace=trace)
            seen = [json.loads(line) for line in started.lines_of(trace)]
            found[words] = started.outcome(folder / "run"), seen
        return found[words]

    return of


@pytest.fixture(scope="session")
def begun(tmp_path_factory, cache):
    """A run that was killed after its save of step 6, to be copied."""
    workdir = tmp_path_factory.mktemp("begun") / "run"
    status, _, errors = started.ended(started.start(workdir, cache=cache, stop=[6]))
    assert status == -9, errors
    return workdir


@pytest.fixture(scope="session")
def strace(pytestconfig):
    """The program that injects faults into system calls."""
    found = shutil.which("strace")
    if found is None:
        text = "there is no strace: install it to inject faults into system calls"
        if pytestconfig.getoption("faults") == "full":
            pytest.fail(text)
        pytest.skip(text)
    return found
