"""Every test runs strictly: no silent promotion, warnings as errors, eight CPU devices."""

import os
import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # In the background of a shell; the processes that tests start are to hear of a Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["CONVJAX_CACHE"] = "off"  # What tests compile is nothing for the user's cache.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()

import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_addoption(parser):
    # Here and not in tests/faults, which pytest has not read yet when it reads the options.
    text = "how often tests/faults breaks things: a few times, or as often as its table states"
    parser.addoption("--faults", choices=("short", "full"), default="short", help=text)


def pytest_terminal_summary(terminalreporter):
    """A table of what tests/faults has broken; pytest-xdist calls this where no test runs."""
    rows: dict[str, tuple[int, list[str]]] = {}
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties if report.when == "call" else ():
            if name == "broken":
                what, count, note = value
                total, notes = rows.get(what, (0, []))
                rows[what] = (total + count, notes + [note] * (note not in ("", *notes)))
    if rows:
        terminalreporter.section("what was broken")
        terminalreporter.write_line("| done | times | |\n|---|---|---|")
        for what, (total, notes) in rows.items():
            terminalreporter.write_line(f"| {what} | {total:,} | {'; '.join(notes)} |")
