"""What XLA is told for each platform, when it compiles, and where its programs are kept.

keep_programs()                                  # on disk, for the next process
with Compiler() as compiler:
    program = compiler.start(jax.jit(f), spec)   # compiled in the background
    y = program(x)                               # waits until it is
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import os
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax

from convjax.allocator import give_back_freed_memory

# In JAX 0.10 and 0.12 on the CPU: YNN's kernels make the gradients of convolutions 3 to 10 times
# slower than the older ones; and 512 bits is the width of AVX-512, of which XLA uses half.
_OPTIONS = {
    "cpu": {
        "xla_cpu_experimental_ynn_fusion_type": "",
        "xla_cpu_prefer_vector_width": "512",
    },
}
# The older emitters compile in half the time: the gradient of LeNet's score over 64 points in 1.1 s
# of a core and not 1.4, feature visualisation in 1.9 and not 4.0, and both ran as fast (2 cores of
# an AMD EPYC, JAX 0.10.2, n = 1). The step of a WRN-16-4 they make slower.
_ONCE = {"cpu": {"xla_cpu_use_fusion_emitters": "False"}}


@functools.cache
def compiler_options(platform: str, *, once: bool = False) -> dict[str, str]:
    """What to pass to `jax.jit(compiler_options=...)` for the fastest ConvNets on a platform.

    An option that this JAX does not know is left out.

    once: whether the program runs so few times that it matters how long its compilation takes.
    """
    options = _OPTIONS.get(platform, {}) | (_ONCE.get(platform, {}) if once else {})
    return {name: value for name, value in options.items() if _is_known(platform, name, value)}


def _is_known(platform: str, name: str, value: str) -> bool:
    device = jax.devices(platform)[0]
    try:
        with jax.default_device(device):
            jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return False
    return True


SWITCH = "CONVJAX_CACHE"


def keep_programs() -> Path | None:
    """Has JAX keep what it compiles in a folder, for the next process; returns the folder, or None.

    It is `convjax/xla` in the user's cache folder (`XDG_CACHE_HOME`, else `~/.cache`), unless
    `CONVJAX_CACHE` in the environment names another, or is `off`. A folder that JAX has been told
    already, as by `JAX_COMPILATION_CACHE_DIR`, is left as it is. The programs that were used least
    lately go when all take more than 1 GiB. Processes may share the folder: JAX locks it. A program
    that was damaged there is a warning of JAX's, once: it is compiled anew and kept. Where the
    folder cannot be written to, one line on standard error says so, and nothing is kept.
    """
    told = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if told is not None:
        return Path(told)
    if os.environ.get(SWITCH, "").lower() == "off":
        return None
    try:
        folder = _cache_folder()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # JAX runs what it finds there.
        tempfile.TemporaryFile(dir=folder).close()
        if importlib.util.find_spec("filelock") is None:
            raise OSError("the package filelock is not installed")
        _clear_halves(folder)
    except (OSError, RuntimeError) as error:
        print(
            f"warning: compiled programs are not kept ({error}): "
            f"set {SWITCH} to a folder, or to off",
            file=sys.stderr,
        )
        return None
    for name, value in (
        ("jax_compilation_cache_max_size", _LARGEST),
        ("jax_persistent_cache_min_compile_time_secs", _WORTH_KEEPING),
        ("jax_compilation_cache_dir", str(folder)),
    ):
        jax.config.update(name, value)
    _replace_damaged(folder)
    return folder


def compile_on(cores: Collection[int]) -> None:
    """Has XLA compile on all of these cores, while steps keep to those of this process.

    To be called before anything is compiled. For processes with a core each of which some wait for
    what another one compiles. Nothing where Linux's threads cannot be told.
    """
    if not _TASKS.is_dir():
        return
    jax.devices()  # It starts as many threads for steps as this process has cores.
    own = os.sched_getaffinity(0)

    def move(threads: Iterable[int], cores: Collection[int]) -> None:
        for thread in threads:
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(thread, cores)

    threads = [int(each.name) for each in _TASKS.iterdir()]
    try:
        move(threads, cores)
        jax.jit(lambda: 0).lower().compile()  # The first one starts as many threads to compile.
    finally:
        move(threads, own)


_TASKS = Path("/proc/self/task")


class Compiled(NamedTuple):
    """A compiled program.

    call: of the arguments that it was compiled for.
    seconds: what tracing and compiling took, or reading it from the disk.
    from_cache: whether it was kept on the disk (see `keep_programs`).
    """

    call: Callable[..., Any]
    seconds: float
    from_cache: bool


class Program:
    """A function that is being compiled; a call waits until it is."""

    def __init__(self, compiling: Future[Compiled]):
        self.compiled = compiling.result  # Waits, and raises what went wrong.

    def __call__(self, *arguments: Any) -> Any:
        """What the function gives for arguments of the specs that it was compiled for."""
        return self.compiled().call(*arguments)


class Compiler:
    """Compiles ahead of time, in the background and one program after another; use it in a `with`.

    Of processes that keep programs in one folder each compiles what no other one is compiling, and
    then takes what the others have kept. On leaving, what has not begun is given up.
    """

    def __init__(self) -> None:
        self._worker = ThreadPoolExecutor(1, "compiler")
        self._waiting: list[_Waiting] = []

    def __enter__(self) -> Compiler:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        for each in list(self._waiting):
            each.program.cancel()
        # A compilation cannot be broken off, and whoever interrupts does not wait for one.
        wait = kind is None or not issubclass(kind, KeyboardInterrupt)
        self._worker.shutdown(wait=wait, cancel_futures=True)

    def start(self, function: Any, *specs: Any) -> Program:
        """Traces a function that `jax.jit` has made, and has it compiled.

        specs: of the arguments, with the shardings that these will have, as `spec_on` gives them.

        >>> with Compiler() as compiler:
        ...     double = compiler.start(jax.jit(lambda x: 2 * x), jax.ShapeDtypeStruct((), "int32"))
        ...     int(double(jax.numpy.int32(21)))
        42
        """
        begun = time.perf_counter()
        # Here, as JAX's settings, such as `jax.default_matmul_precision`, hold for one thread.
        lowered = function.lower(*specs)
        traced = time.perf_counter() - begun
        program: Future[Compiled] = Future()
        self._waiting.append(_Waiting(lowered, traced, program, _claim_of(lowered)))
        self._worker.submit(self._compile_one)
        return Program(program)

    def _compile_one(self) -> None:
        """Compiles the first program that no other process compiles now."""
        patience = time.monotonic() + _PATIENCE
        while True:
            for each in self._waiting:
                given_up, claim = each.program.cancelled(), each.claim
                if given_up or claim is None or claim.is_free() or time.monotonic() > patience:
                    self._waiting.remove(each)
                    return None if given_up else each.compile()
            time.sleep(_LOOK)


class _Waiting(NamedTuple):
    """A program that is to be compiled.

    traced: the seconds that it took to trace it. claim: what keeps other processes from it, if any.
    """

    lowered: Any
    traced: float
    program: Future[Compiled]
    claim: _Claim | None

    def compile(self) -> None:
        """Compiles it, unless it was given up meanwhile."""
        begun, hits = time.perf_counter(), _hits()
        try:
            if not self.program.set_running_or_notify_cancel():
                return
            call = self.lowered.compile()
            give_back_freed_memory()
            seconds = self.traced + time.perf_counter() - begun
            self.program.set_result(Compiled(call, seconds, _hits() > hits))
        except BaseException as error:
            self.program.set_exception(error)
        finally:
            if self.claim is not None:
                self.claim.give_back()


class _Claim:
    """What one process at a time has of a program, by a file in the folder of kept programs.

    The kernel frees it when its process ends, however it ends.
    """

    def __init__(self, path: Path):
        import filelock

        self._path = path
        self._lock, self._timeout = filelock.FileLock(path), filelock.Timeout

    def is_free(self) -> bool:
        """Takes it, if nobody has it; one that cannot be made is nobody's, and keeps nobody."""
        try:
            self._lock.acquire(timeout=0)
        except self._timeout:
            return False
        except (OSError, NotImplementedError):  # Not every file system has locks.
            pass
        return True

    def give_back(self) -> None:
        """Frees it."""
        # Who has opened the file a moment ago may compile the same once more, and no harm is done.
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
        self._lock.release()


def _claim_of(lowered: Any) -> _Claim | None:
    """The claim to a program; None where programs are not kept, or other processes wait for it."""
    folder = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    # Those that train together compile together: they tell one another what they have tried.
    if folder is None or jax.process_count() > 1 or importlib.util.find_spec("filelock") is None:
        return None
    name = hashlib.sha256(lowered.as_text().encode()).hexdigest()[:32]
    return _Claim(Path(folder) / f"{name}.lock")


def spec_on(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    """Shapes and dtypes of a pytree of arrays that are, or will be, spread over devices like this.

    >>> device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    >>> spec_on(jax.numpy.zeros((2, 3)), device).shape
    (2, 3)
    """

    def one(leaf: Any) -> jax.ShapeDtypeStruct:
        weak = getattr(leaf, "weak_type", False)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding, weak_type=weak)

    return jax.tree.map(one, tree)


_LOOK = 0.02  # seconds between two looks at what others compile
_PATIENCE = 600.0  # seconds after which what another process compiles is compiled here, too
_LARGEST = 1 << 30
_WORTH_KEEPING = 0.05  # seconds; reading a program takes a few thousandths


def _cache_folder() -> Path:
    chosen = os.environ.get(SWITCH)
    if chosen:
        return Path(chosen).expanduser().absolute()
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "convjax" / "xla"


def _clear_halves(folder: Path) -> None:
    """Removes programs that a killed process has not written to their end.

    JAX writes a program, and then, still under the same lock, when it was last used.
    """
    import filelock

    with filelock.FileLock(folder / ".lockfile", timeout=10):
        for program in folder.glob("*-cache"):
            if not program.with_name(program.name.removesuffix("cache") + "atime").exists():
                program.unlink()


_EVENTS = "/jax/compilation_cache/"  # what JAX calls the events of its cache


class _Seen(threading.local):
    """What a thread has seen of the cache.

    hits: how many programs it has read from the disk.
    asked: when it last looked for one there, in nanoseconds since 1970.
    """

    hits = 0
    asked = 0


_of_this_thread = _Seen()


@functools.cache
def _listen() -> None:
    def on_event(event: str, **about: Any) -> None:
        if event == _EVENTS + "cache_hits":
            _of_this_thread.hits += 1

    jax.monitoring.register_event_listener(on_event)


def _hits() -> int:
    """How many programs this thread has read from the disk."""
    _listen()
    return _of_this_thread.hits


@functools.cache
def _replace_damaged(folder: Path) -> None:
    """Has programs that cannot be read make way for those that are compiled in their place.

    JAX warns when it cannot read one, compiles it, and then keeps what is there: the damaged one.
    """

    def on_event(event: str, **about: Any) -> None:
        if event == _EVENTS + "compile_requests_use_cache":
            _of_this_thread.asked = time.time_ns()
        elif event == _EVENTS + "cache_misses":  # It is compiled, and about to be kept.
            _remove_damaged(folder, _of_this_thread.asked)

    jax.monitoring.register_event_listener(on_event)


def _remove_damaged(folder: Path, since: int) -> None:
    """Removes the damaged ones of the programs that were read since that time."""
    import filelock

    with filelock.FileLock(folder / ".lockfile", timeout=10):
        for last_use in folder.glob("*-atime"):
            program = last_use.with_name(last_use.name.removesuffix("atime") + "cache")
            read = int.from_bytes(last_use.read_bytes(), "little") >= since
            if read and program.exists() and not _is_whole(program.read_bytes()):
                program.unlink()


def _is_whole(program: bytes) -> bool:
    """Whether what JAX has compressed can be read: by zstandard if it has that, else by zlib."""
    decompress, error = zlib.decompress, zlib.error
    if program.startswith(b"\x28\xb5\x2f\xfd"):
        name = "compression.zstd" if sys.version_info >= (3, 14) else "zstandard"
        if importlib.util.find_spec(name) is None:
            return True  # for all that this Python can tell
        zstd = importlib.import_module(name)
        decompress, error = zstd.decompress, zstd.ZstdError
    try:
        decompress(program)
    except error:
        return False
    return True
