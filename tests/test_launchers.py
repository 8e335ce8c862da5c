"""A launcher hands a checked experiment to `run`, or tells a mistake in one line with status 2."""

import json
import os
import re
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest
from test_config import MISTYPED, OUT_OF_RANGE, PATHS, SECTIONS, TEXTS, put, swapped

import convjax
from convjax.config import Experiment, Model, UserError, flatten, to_dict, validate
from convjax.flags import guard
from convjax.pages import load
from experiments import evaluate, explain, export, inspect, report, study, sweep, train

REPO = Path(__file__).resolve().parent.parent
PAGES = [
    "fashion_mini.py",
    "fashion_mnist.py",
    "fashion_mnist.py:lenet",
    "fashion_mnist.py:small",
    "fashion_mnist.py:resnet20",
    "cifar10.py",
    "cifar10.py:resnet20",
]


@pytest.fixture
def calls(monkeypatch):
    """What the launchers asked of `run`, which here only takes notes."""
    calls = []

    def note_train(config, workdir, *, dry_run=False, **how):
        calls.append((config, workdir, dry_run))
        return "closing line"

    def note_evaluate(workdir, split=None, model="newest"):
        calls.append((workdir, split, model))
        return "closing line"

    run = types.SimpleNamespace(train=note_train, evaluate=note_evaluate)
    monkeypatch.setattr(convjax, "run", run, raising=False)
    monkeypatch.chdir(REPO)
    return calls


@pytest.fixture
def refused(calls, capsys):
    """Calls a launcher with wrong words and returns the one line of its error."""

    def call(*words, launcher=train):
        status = guard(launcher.main, ["launcher", *words])
        out, err = capsys.readouterr()
        assert status == 2
        assert out == ""
        assert err.count("\n") == 1
        assert err.endswith("\n")
        assert err.startswith("error: ")
        assert not calls
        return err.removeprefix("error: ").removesuffix("\n")

    return call


def accepted(calls, *words):
    """The experiment that `run` was given."""
    assert guard(train.main, ["launcher", *words]) == 0
    return calls.pop()[0]


def test_without_a_flag_the_bundled_data_are_trained_on(calls, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert guard(train.main, ["launcher"]) == 0
    assert calls == [(load(str(REPO / "configs/fashion_mini.py")), None, False)]
    assert calls[0][0].data.name == "fashion_mini"
    assert capsys.readouterr() == ("closing line\n", "")


def test_flags_reach_the_run(calls):
    guard(train.main, ["launcher", "--workdir=a folder", "--dry_run", "--config.seed=3"])
    [(config, workdir, dry_run)] = calls
    assert (config.seed, workdir, dry_run) == (3, "a folder", True)


def test_evaluation_is_asked_for_a_run_folder_and_a_split(calls, capsys, tmp_path):
    (tmp_path / "config.json").write_text("{}", "utf-8")
    assert guard(evaluate.main, ["launcher", f"--workdir={tmp_path}"]) == 0
    words = ["--split", "train", "--model=best"]
    assert guard(evaluate.main, ["launcher", f"--workdir={tmp_path}", *words]) == 0
    assert calls == [(str(tmp_path), None, "newest"), (str(tmp_path), "train", "best")]
    assert capsys.readouterr() == ("closing line\nclosing line\n", "")


@pytest.mark.parametrize(
    ("word", "path", "value"),
    [
        ("seed=12", "seed", 12),
        ("epochs=2", "epochs", 2.0),
        ("epochs=2.5", "epochs", 2.5),
        ("name=123", "name", "123"),
        ("model.name=my.package:net", "model.name", "my.package:net"),
        ("data.dir=None", "data.dir", None),
        ("data.dir=some/folder=1", "data.dir", "some/folder=1"),
        ("optimizer.learning_rate=1e-4", "optimizer.learning_rate", 1e-4),
        ("optimizer.clip_norm=1", "optimizer.clip_norm", 1.0),
        ("optimizer.clip_norm=none", "optimizer.clip_norm", None),
        ("optimizer.decay=*/kernel", "optimizer.decay", ("*/kernel",)),
        ("optimizer.decay=('*/kernel', '*/scale')", "optimizer.decay", ("*/kernel", "*/scale")),
        ("optimizer.decay=()", "optimizer.decay", ()),
        ("optimizer.args={'momentum': 0.9}", "optimizer.args.momentum", 0.9),
        ("optimizer.args.nesterov=True", "optimizer.args.nesterov", True),
        ("optimizer.args.nesterov=false", "optimizer.args.nesterov", False),
        ("model.args.width=32", "model.args.width", 32),
        ("model.args.rate=1e-1", "model.args.rate", 0.1),
        ("model.args.stages=(1, [2, 3])", "model.args.stages", (1, (2, 3))),
        ("model.args.norm=None", "model.args.norm", None),
        ("model.args.padding=SAME", "model.args.padding", "SAME"),
        ("model.args.padding='1'", "model.args.padding", "1"),
        ("model.args.values=2", "model.args.values", 2),
    ],
)
def test_an_override_is_read_as_its_type(calls, word, path, value):
    given = flatten(accepted(calls, f"--config.{word}"))
    assert given[path] == value
    assert type(given[path]) is type(value)
    name, _, text = word.partition("=")
    assert flatten(accepted(calls, f"--config.{name}", text)) == given
    others = {each: given[each] for each in given if each != path}
    default = flatten(load("configs/fashion_mini.py"))
    assert others == {each: default[each] for each in default if each in others}


def test_the_last_of_two_overrides_holds_wherever_the_page_is_named(calls):
    words = ["--config.seed=1", "--config=configs/fashion_mnist.py:lenet", "--config.seed=2"]
    config = accepted(calls, *words)
    assert (config.name, config.seed) == ("fashion_mnist-lenet", 2)


def test_a_key_of_an_open_dict_overrides_the_page_and_leaves_the_rest(calls):
    words = ["--config=configs/cifar10.py", "--config.optimizer.args.momentum=0.8"]
    assert accepted(calls, *words).optimizer.args == {"momentum": 0.8, "nesterov": True}


def test_flags_may_stand_in_a_file(calls, tmp_path):
    file = tmp_path / "flags.txt"
    file.write_text("--config.seed=5\n--config.model.args.width=8\n", "utf-8")
    config = accepted(calls, f"--flagfile={file}")
    assert (config.seed, config.model.args) == (5, {"width": 8})


def test_a_saved_config_runs_the_same_experiment(calls, tmp_path):
    config = Experiment(seed=9, model=Model("resnet20", {"width": 8, "stages": (1, 2)}))
    saved = tmp_path / "config.json"
    saved.write_text(json.dumps(to_dict(config)), "utf-8")
    assert accepted(calls, f"--config={saved}") == config
    assert accepted(calls, f"--config={saved}", "--config.model.args.width=4").seed == 9


@pytest.mark.parametrize("path", [*PATHS, *SECTIONS])
def test_a_misspelt_key_on_the_command_line_is_told_the_right_one(refused, path):
    *sections, name = path.split(".")
    wrong = ".".join([*sections, swapped(name)])
    line = refused(f"--config.{wrong}=1")
    assert line.endswith(f"has no {swapped(name)!r}; did you mean {name!r}?")


@pytest.mark.parametrize(
    "path", [path for path in PATHS if MISTYPED[path][1][:3] != "str" and path not in TEXTS]
)
def test_a_mistyped_value_on_the_command_line_is_told_the_type(refused, path):
    line = refused(f"--config.{path}=1 so")
    assert line.startswith(f"config.{path} is '1 so': expected {MISTYPED[path][1]}")


@pytest.mark.parametrize(
    ("path", "value"), [pair for pair in OUT_OF_RANGE if not isinstance(pair[1], dict)]
)
def test_a_value_out_of_range_on_the_command_line_is_refused(refused, path, value):
    assert refused(f"--config.{path}={value}").startswith(f"config.{path} is ")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--worksdir=x", "unknown flag --worksdir; did you mean '--workdir'?"),
        ("--dryrun", "unknown flag --dryrun; did you mean '--dry_run'?"),
        ("--epochs=3", "unknown flag --epochs; did you mean '--config.epochs'?"),
        ("--conifg.epochs=3", "unknown flag --conifg.epochs; did you mean '--config.epochs'?"),
        ("--noconfig.seed", "did you mean '--config.seed'?"),
        ("--learning_rate=1", "did you mean '--config.optimizer.learning_rate'?"),
        ("--zzz", "choose from '--config', '--coordinator', '--debug_nans'"),
        ("--dry_run=maybe", "flag --dry_run=maybe: expected bool"),
        ("--workdir", "Missing value for flag --workdir"),
        ("--config.seed", "--config.seed has no value: give --config.seed=VALUE"),
        ("--config.seed --dry_run", "--config.seed has no value"),
        ("workdir=x", "'workdir=x' is no flag: a flag begins with '--'; did you mean '--workdir'?"),
        ("-- dry_run", "'dry_run' is no flag"),
        ("--flagfile=missing", "Unable to open flagfile"),
        ("--config.learning_rate=1", "did you mean 'optimizer.learning_rate'?"),
        ("--config.lerning_rate=1", "did you mean 'optimizer.learning_rate'?"),
        ("--config.model=resnet20", "is a section: set --config.model.name, --config.model.args"),
        ("--config.epochs.most=1", "is one value: set --config.epochs=VALUE"),
        ("--config.model.args.norm.eps=1", "is too deep: set --config.model.args.norm=VALUE"),
        ("--config.model.args.=1", "is too deep"),
        ("--config.=1", "config has no ''; choose from 'accumulate', "),
        ("--config.seed=x --config.sede=1", "expected int; config has no 'sede'; did you mean 's"),
        ("--config=configs/fashon_mini.py", "did you mean 'configs/fashion_mini.py'?"),
        ("--config=fashion_mini", "did you mean 'configs/fashion_mini.py'?"),
        ("--config=configs/cifar.py:resnet20", "did you mean 'configs/cifar10.py'?"),
        ("--config=nowhere/cifar10.py", "did you mean 'configs/cifar10.py'?"),
        ("--config=configs", "config file 'configs' is a folder: did you mean 'configs/"),
        ("--config=", "--config is empty: give --config=VALUE, or leave it out"),
        ("--workdir=", "--workdir is empty"),
        ("--config=pyproject.toml", "give FILE.py, FILE.py:ARGUMENT or FILE.json"),
        ("--config=configs/fashion_mnist.py:smal", "has no 'smal': did you mean 'small'?"),
        ("--config=configs/fashion_mnist.py:lenet5", "did you mean 'lenet'?"),
        (
            "--config=configs/fashion_mnist.py:",
            "choose from 'erasing', 'lenet', 'resnet20', 'small'",
        ),
        (
            "--config=configs/fashion_mnist.py:vgg",
            "choose from 'erasing', 'lenet', 'resnet20', 'small'",
        ),
        ("--config=configs/cifar10.py:resnet2", "did you mean 'resnet20'?"),
        ("--config=configs/fashion_mini.py:small", "takes no argument: leave out ':small'"),
    ],
)
def test_a_mistake_is_told_in_one_line_with_the_nearest_right_name(refused, words, expected):
    assert expected in refused(*words.split(" "))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--worksdir=x", "did you mean '--workdir'?"),
        ("--splt=test", "did you mean '--split'?"),
        ("--config.seed=1", "unknown flag --config.seed; choose from '--bank', '--bins'"),
        ("", "--workdir is missing: give --workdir=DIR"),
        ("--workdir=", "--workdir is empty"),
        ("--flagfile=missing", "Unable to open flagfile"),
        ("--workdir=runs/secnd", "does not exist: did you mean 'runs/second'?"),
        (
            "--workdir=runs",
            "holds no run (no config.json): choose from 'runs/first', 'runs/second'",
        ),
    ],
)
def test_evaluation_tells_mistakes_as_well(refused, monkeypatch, tmp_path, words, expected):
    monkeypatch.chdir(tmp_path)
    for name in ("first", "second"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.json").write_text("{}", "utf-8")
    assert expected in refused(*words.split(), launcher=evaluate)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def get_config():\n    x = 1\n    return 1 / 0\n", ":3: ZeroDivisionError: division by"),
        ("x = [\n1, 2\n\ny = 3\n", ":1: SyntaxError: '[' was never closed"),
        ("import not_a_module\n", ":1: ModuleNotFoundError: No module named 'not_a_module'"),
        ("raise OSError('two\\nlines')\n", ":1: OSError: two lines"),
        ("get_config = 3\n", "has no get_config: define get_config() -> Experiment"),
        ("def get_config():\n    return {'seed': 1}\n", "get_config returns dict: let it return"),
        ("def get_config():\n    pass\n", "get_config returns NoneType: let it return"),
        (
            "from convjax.config import *\n"
            "def get_config():\n    return Experiment(model=Model(args={'block': print}))\n",
            "config.model.args.block is <built-in function print>: expected a number, text, ",
        ),
        (
            "from convjax.config import *\ndef get_config():\n    return Experiment(sede=3)\n",
            ":3: TypeError: Experiment.__init__() got an unexpected keyword argument 'sede'",
        ),
        (
            "from convjax.config import *\n"
            "def get_config():\n    c = Experiment()\n    c.sede = 3\n    return c\n",
            "config has no 'sede'; did you mean 'seed'?",
        ),
    ],
)
def test_a_page_that_fails_is_named_with_its_line(refused, tmp_path, text, expected):
    page = tmp_path / "page.py"
    page.write_text(text, "utf-8")
    line = refused(f"--config={page}")
    assert expected in line
    assert line.startswith((str(page), "config"))


def test_a_saved_config_that_is_broken_is_named(refused, tmp_path):
    saved = tmp_path / "config.json"
    saved.write_text('{"optimizer": {"lerning_rate": 1}}', "utf-8")
    assert refused(f"--config={saved}").startswith(f"{saved}: config.optimizer has no 'lerning_")
    assert "give FILE.py, FILE.py:ARGUMENT or FILE.json" in refused(f"--config={saved}:small")


def test_a_message_stays_one_plain_line_whatever_it_quotes(refused):
    assert "\x1b" not in refused("--a\x1b[31m\r\nb=1")
    assert "\x1b" not in refused("--config=no\x1b[2J\nfile.py")


def test_a_mistake_of_ours_keeps_its_traceback():
    def broken(argv):
        raise ZeroDivisionError(argv)

    with pytest.raises(ZeroDivisionError):
        guard(broken, [])


def test_a_launcher_ends_without_a_word_once_nobody_reads_what_it_prints():
    reader, writer = os.pipe()
    os.close(reader)
    try:
        command = [sys.executable, "-m", "experiments.inspect", "--help"]
        done = subprocess.run(command, check=False, cwd=REPO, stdout=writer, stderr=subprocess.PIPE)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_a_broken_pipe_to_another_process_keeps_its_traceback():
    def broken(argv):
        raise BrokenPipeError(argv)

    with pytest.raises(BrokenPipeError):
        guard(broken, [])


def test_ctrl_c_is_one_line_and_status_130(capsys):
    def stopped(argv):
        raise KeyboardInterrupt

    assert guard(stopped, []) == 130
    assert capsys.readouterr() == ("", "interrupted\n")


def test_an_error_of_the_run_that_a_person_can_mend_is_one_line(calls, capsys, monkeypatch):
    def no_data(config, workdir, **how):
        raise UserError("no data:\ngive --config.data.dir")

    monkeypatch.setattr("convjax.run.train", no_data)
    assert guard(train.main, ["launcher"]) == 2
    assert capsys.readouterr() == ("", "error: no data: give --config.data.dir\n")


@pytest.mark.parametrize("page", PAGES)
def test_every_page_can_be_run_and_names_what_exists(page):
    from convjax import models
    from convjax.training import optimizer

    config = load(str(REPO / "configs" / page))
    validate(config)
    assert config.model.name in models.names()
    assert config.optimizer.name in optimizer.names()
    assert config.name.startswith(page.partition(".")[0])


def test_pages_give_a_new_experiment_each_time():
    path = str(REPO / "configs/cifar10.py")
    first = put(load(path), "seed", 77)
    first.optimizer.args["momentum"] = 0.0
    assert load(path).seed == 0
    assert load(path).optimizer.args["momentum"] == 0.9


def test_every_page_states_its_command_hardware_time_and_accuracy():
    for page in {page.partition(":")[0] for page in PAGES}:
        text = (REPO / "configs" / page).read_text("utf-8").split('"""')[1]
        assert "command:  python -m experiments.train" in text
        assert re.search(r"hardware: \d+ ", text)
        assert re.search(r"\d s, .*0\.\d{4} ± 0\.\d{4} .*n = \d", text) or "not measured" in text


def test_launchers_are_short():
    for launcher in (train, evaluate, explain, export, inspect, report, study, sweep):
        assert len(Path(str(launcher.__file__)).read_text("utf-8").splitlines()) < 80


def shell(*words):
    """A launcher as a shell starts it."""
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    command = [sys.executable, "-X", "importtime", "-m", *words]
    # The exit status is what is tested.
    return subprocess.run(command, check=False, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("launcher", ["train", "evaluate", "export", "sweep"])
def test_help_answers_with_status_0_and_without_jax(launcher):
    done = shell(f"experiments.{launcher}", "--help")
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert done.returncode == 0
    assert "absl.flags" in imported, "the list of imports was read"
    assert not imported & {"jax", "jaxlib", "numpy", "optax", "orbax", "convjax.run", "tqdm"}
    assert f"python -m experiments.{launcher}" in done.stdout
    assert "--workdir: " in done.stdout
    if launcher == "train":
        assert all(f"--config.{path}=" in done.stdout for path in PATHS)
        pages = {page.partition(":")[0] for page in PAGES}
        assert all(f"configs/{page}: " in done.stdout for page in pages)


def test_a_mistake_exits_with_2_before_jax_is_imported():
    done = shell("experiments.train", "--config.optimizer.lerning_rate=1")
    lines = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert done.returncode == 2
    assert done.stdout == ""
    assert lines == ["error: config.optimizer has no 'lerning_rate'; did you mean 'learning_rate'?"]
    assert "| jax\n" not in done.stderr
