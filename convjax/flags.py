"""From a command line to a checked experiment, and from a mistake to one clear line.

    options = flags.FlagValues()                          # absl's, one set for each launcher
    workdir = flags.DEFINE_string("workdir", None, "the run's folder", flag_values=options)
    config = parse_experiment(options, argv, __doc__)     # --config=PAGE --config.a.b=VALUE
    leave(guard(main, sys.argv))                          # UserError: one line, status 2

absl parses the flags and ml_collections the fields of the config; what is added here are open dicts
(`--config.model.args.width=32`) and the nearest right name in each message. JAX is not imported.
"""

import ast
import dataclasses
import functools
import inspect
import os
import re
import select
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import flags
from ml_collections import config_flags

import convjax.config
from convjax import interrupts
from convjax.config import ConfigError, Experiment, UserError, flatten, from_dict, to_dict, validate
from convjax.names import closest, nearest, trust_as_before, trust_only
from convjax.pages import CONFIGS, SWEEPS, listed, load
from convjax.typed import field_types, is_open, type_name, unknown_key

DEFAULT = CONFIGS / "fashion_mini.py"


def guard(main: Callable[[list[str]], None], argv: list[str]) -> int:
    """Runs a launcher's `main(argv)`; returns the exit status.

    That is 2 after one line for a UserError, 130 or 143 after one line for Ctrl-C or SIGTERM, 141
    where nobody reads what it prints any more, and 0 otherwise.
    """
    try:
        with interrupts.handled(), trust_as_before():
            main(argv)
    except UserError as error:
        # A file's name may hold line breaks and escapes; the message stays one plain line.
        text = "".join(sign if sign.isprintable() else " " for sign in str(error))
        print(f"error: {' '.join(text.split())}", file=sys.stderr)
        return 2
    except interrupts.Interrupted as error:
        print(error, file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130  # as a shell has it for Ctrl-C
    except BrokenPipeError:
        if not _unread():
            raise
        return _UNREAD
    return 0


def leave(status: int) -> NoReturn:
    """Ends the process: at once where it was interrupted, for a compilation would be waited for."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            status = status or _UNREAD
            # Python flushes it once more at the end, and would complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if status in (130, 143):
        os._exit(status)
    sys.exit(status)


def parse(options: flags.FlagValues, argv: Sequence[str], doc: str | None) -> None:
    """Sets the flags in `options` from `argv`; `--help` prints them below `doc` and exits with 0.

    Raises: UserError for an unknown flag, a wrong value or an argument that is no flag.
    """
    if any(re.fullmatch("--?(h|help|helpshort|helpfull)", word) for word in argv[1:]):
        print(_help(options, doc or ""), flush=True)  # While a broken pipe is handled.
        raise SystemExit(0)
    options.set_gnu_getopt()
    try:
        left_over = options(list(argv))[1:]
    except flags.UnrecognizedFlagError as error:
        hint = _nearest_flag(options, error.flagname)
        raise UserError(f"unknown flag --{error.flagname}; {hint}") from None
    except flags.IllegalFlagValueError as error:
        flag = options[str(error).removeprefix("flag --").partition("=")[0]]
        given = str(error).partition(": ")[0]
        raise UserError(f"{given}: expected {flag.flag_type()}") from None
    except flags.Error as error:
        raise UserError(str(error).removeprefix("ERROR:: ")) from None
    if left_over:
        hint = _nearest_flag(options, left_over[0].partition("=")[0])
        raise UserError(f"{left_over[0]!r} is no flag: a flag begins with '--'; {hint}")
    for name in options:
        # The variable of a shell that was never set: not the default, and no folder either.
        if options[name].value == "":
            raise UserError(f"--{name} is empty: give --{name}=VALUE, or leave it out")


def parse_experiment(
    options: flags.FlagValues,
    argv: Sequence[str],
    doc: str | None,
    default: str = str(DEFAULT),
    *,
    base: Callable[[], Experiment | None] = lambda: None,
) -> Experiment:
    """Does what `parse` does, and returns the experiment of `--config` with its overrides applied.

    Of a saved FILE.json no function of another package is called, unless `--trust` is given.

    base: asked once the flags are parsed, and if there is no `--config` among them: what to take in
        place of the default, or None.

    Raises: UserError for all that `parse` refuses, and for a config that cannot be run.
    """
    text = (
        "a page FILE.py or FILE.py:ARGUMENT, or a saved FILE.json; without it, "
        f"{Path(default).name}"
    )
    source = flags.DEFINE_string("config", default, text, flag_values=options)
    text = "call functions of other packages that a saved FILE.json names"
    trust = flags.DEFINE_bool("trust", False, text, flag_values=options)
    try:
        words = options.read_flags_from_files(list(argv), force_gnu=False)
    except flags.Error as error:
        raise UserError(str(error).removeprefix("ERROR:: ")) from None
    rest, changes = _split(words)
    parse(options, rest, doc)
    found = None if options["config"].present else base()
    config = override(found or load(source.value), changes)
    validate(config)
    if source.value.endswith(".json") and not trust.value:
        # What is written on the command line is known to whoever wrote it.
        trust_only(name for _, text in changes for name in re.findall(r"[\w.]+:\w+", text))
    return config


def run_folder(workdir: str | None) -> str:
    """The value of `--workdir`, once it is known to be the folder of a run.

    Raises: UserError if it does not, with the nearest run folder beside or in it.
    """
    if workdir is None:
        raise UserError("--workdir is missing: give --workdir=DIR, the folder of a run")
    folder = Path(workdir)
    if (folder / "config.json").is_file():
        return workdir
    runs = [
        str(file.parent)
        for file in sorted((*folder.glob("*/config.json"), *folder.parent.glob("*/config.json")))
    ]
    kind = "holds no run (no config.json)" if folder.is_dir() else "does not exist"
    hint = nearest(workdir, runs) if runs else "give the folder of a run"
    raise UserError(f"--workdir={workdir} {kind}: {hint}")


def override(config: Experiment, changes: Sequence[tuple[str, str]]) -> Experiment:
    """A copy of `config` with each (dotted path, text) set, the text read as the field's type.

    Keys of an open dict may be new; their texts are Python literals, or else plain text. Several
    texts are divided by semicolons.

    >>> override(Experiment(), [("epochs", "2"), ("model.args.width", "32")]).model.args
    {'width': 32}
    >>> override(Experiment(), [("augment.parts", "crop(4, mode='edge'); flip")]).augment.parts
    ("crop(4, mode='edge')", 'flip')

    Raises: ConfigError that lists every unknown path and every text that is not of its type.
    """
    config, wrong = from_dict(to_dict(config)), []
    for path, text in changes:
        try:
            config = _set(config, path, text)
        except ConfigError as error:
            wrong.append(str(error))
    if wrong:
        raise ConfigError("; ".join(wrong))
    return from_dict(to_dict(config))


def literal(text: str) -> Any:
    """The Python literal that a text spells, or the text itself.

    >>> literal("(3, 3)"), literal("None"), literal("true"), literal("same")
    ((3, 3), None, True, 'same')
    """
    try:
        return ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


_UNREAD = 141  # as a shell has it for SIGPIPE


def _unread() -> bool:
    """Whether the reader of standard output or standard error, as `head`, has gone."""
    poll = select.poll()
    for stream in (1, 2):
        poll.register(stream, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _split(words: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The words that are left to absl, and (path, text) of each `--config.path=text`."""
    rest, changes, words = [], [], list(words)
    while words:
        word = words.pop(0)
        match = re.fullmatch(r"--?config\.([^=]*)(?:=(.*))?", word, re.DOTALL)
        if word == "--":
            return [*rest, word, *words], changes
        if not match:
            rest.append(word)
        elif match[2] is not None:
            changes.append((match[1], match[2]))
        elif words and not words[0].startswith("--"):
            changes.append((match[1], words.pop(0)))
        elif _is_switch(match[1]):
            changes.append((match[1], "true"))
        else:
            raise UserError(f"{word} has no value: give {word}=VALUE")
    return rest, changes


def _set(config: Experiment, path: str, text: str) -> Experiment:
    """The experiment with one field, or one key of an open dict, set."""
    expected, key = _find(path)
    *sections, name = path.split(".")
    section: Any = functools.reduce(getattr, sections, config)
    if key:
        section[key] = literal(text)
        return config
    # ml_collections has no text for None and no parser for a dict.
    may_be_none = type(None) in typing.get_args(expected)
    if is_open(expected) or (may_be_none and text in ("None", "none")):
        setattr(section, name, literal(text.capitalize() if may_be_none else text))
        return config
    if expected == tuple[str, ...] and not text.lstrip().startswith(("(", "[")):
        parts = (part.strip() for part in text.split(";"))  # Calls and rules have commas inside.
        setattr(section, name, tuple(part for part in parts if part))
        return config
    word, holder = f"--config.{path}={text}", flags.FlagValues()
    define = config_flags.DEFINE_config_dataclass
    flag = define("config", config, flag_values=holder, sys_argv=["", word])
    try:
        holder(["", word])
    except flags.IllegalFlagValueError:
        raise ConfigError(f"config.{path} is {text!r}: expected {type_name(expected)}") from None
    return flag.value


def _find(path: str) -> tuple[Any, str | None]:
    """The type of the field at a dotted path, and, below an open dict, the key."""
    expected: Any = Experiment
    where, keys = "config", path.split(".")
    while keys:
        if is_open(expected):
            if len(keys) > 1 or not keys[0].isidentifier():
                raise ConfigError(f"config.{path} is too deep: set --{where}.{keys[0]}=VALUE whole")
            return expected, keys[0]
        if not dataclasses.is_dataclass(expected):
            raise ConfigError(f"{where} is one value: set --{where}=VALUE, not --config.{path}")
        name = keys.pop(0)
        if name not in field_types(expected):
            raise ConfigError(unknown_key(expected, name, where))
        expected, where = field_types(expected)[name], f"{where}.{name}"
    if dataclasses.is_dataclass(expected):
        inside = ", ".join(f"--{where}.{key}" for key in field_types(expected))
        raise ConfigError(f"{where} is a section: set {inside}")
    return expected, None


def _is_switch(path: str) -> bool:
    """Whether the key at a dotted path is true or false, so that its name alone says true."""
    try:
        return _find(path)[0] is bool
    except ConfigError:
        return False


def _nearest_flag(options: flags.FlagValues, name: str) -> str:
    """Which flag, or which key of the config, was meant."""
    names = [*options, "help"]
    paths = list(flatten(Experiment())) if "config" in options else []
    same = [f"'--config.{path}'" for path in paths if path.split(".")[-1] == name]
    if same:
        return f"did you mean {' or '.join(same)}?"
    close = closest(name, [*names, *(f"config.{path}" for path in paths)])
    return f"did you mean '--{close}'?" if close else nearest("", [f"--{flag}" for flag in names])


def _help(options: flags.FlagValues, doc: str) -> str:
    lines = [doc.strip(), "", "Flags:"]
    lines += [f"  --{name}: {options[name].help}" for name in options]
    if "config" in options:
        lines += ["", "Config pages:"]
        lines += [f"  {path}: {text}" for path, text in listed().items()]
        if "sweep" in options:
            lines += ["", "Sweep pages:"]
            lines += [f"  {path}: {text}" for path, text in listed(SWEEPS).items()]
        lines += ["", "Keys of a config, with the defaults of a page that says nothing:"]
        lines += [f"  --config.{path}={value!r}: {text}" for path, value, text in _keys()]
    return "\n".join(lines)


def _keys() -> Iterator[tuple[str, Any, str]]:
    """Dotted path, default and explanation of every key; the texts stand below the fields."""
    texts = {}
    for section in ast.parse(inspect.getsource(convjax.config)).body:
        if isinstance(section, ast.ClassDef):
            for line, below in zip(section.body, section.body[1:]):
                match line, below:
                    case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(text)):
                        texts[section.name, name] = text
    for path, default in flatten(Experiment()).items():
        *sections, name = path.split(".")
        kind = type(functools.reduce(getattr, sections, Experiment())).__name__
        yield path, default, texts[kind, name]
