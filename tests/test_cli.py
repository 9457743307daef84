"""The command as people meet it: what it prints, what it leaves, how it ends."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

import clray
from clray import plugins
from clray.cli import main
from clray.devices import training_devices
from clray.errors import ConfigError, LeaseLostError
from clray.store.filesystem import Storage
from clray.store.lease import Lease
from tests.trials.sweeps import experiment, sweep, write

CLRAY = str(Path(sys.executable).with_name("clray"))
REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def clray_says(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """A function that runs the command in this process and returns exit code, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clray", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        out = capsys.readouterr()
        return int(end.value.code or 0), out.out, out.err

    return run


def test_version_and_help(clray_says: Any) -> None:
    assert clray_says("--version") == (0, f"clray {clray.__version__}\n", "")
    for page in ("-h", "--help"):
        code, out, _ = clray_says(page)
        assert code == 0
        assert [name for name in ("run", "sweep", "reproduce", "status", "data", "list", "schema") if name not in out] == []


@pytest.mark.parametrize("kind", ["datasets", "models", "optimizers", "strategies", "loggers"])
def test_list_has_a_line_a_plugin(clray_says: Any, kind: str) -> None:
    code, out, _ = clray_says("list", kind)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == plugins.names(kind)
    assert all(len(line.split()) > 2 for line in out.splitlines())  # each with a description


def test_every_listed_plugin_loads_and_carries_its_name() -> None:
    for kind in plugins.PACKAGES:
        for name in plugins.names(kind):
            assert issubclass(plugins.options_class(kind, name), plugins.BASES[kind])


def schema(clray_says: Any, kind: str) -> jsonschema.Draft202012Validator:
    """The printed schema of one kind of file."""
    code, out, _ = clray_says("schema", kind)
    assert code == 0
    printed = json.loads(out)
    jsonschema.Draft202012Validator.check_schema(printed)
    assert printed["title"] == f"clray {kind}"
    return jsonschema.Draft202012Validator(printed)


def test_the_example_files_fit_the_printed_schemas(clray_says: Any) -> None:
    kinds = {kind: schema(clray_says, kind) for kind in ("sweep", "experiment", "published")}
    files = sorted((REPOSITORY / "sweeps").rglob("*.yaml"))
    assert len(files) >= 2
    for path in files:
        data = YAML(typ="safe", pure=True).load(path)
        kind = "published" if path.name.endswith(".published.yaml") else "sweep" if "experiment" in data else "experiment"
        errors = kinds[kind].iter_errors(data)
        assert [f"{path.name}: {error.json_path}: {error.message}" for error in errors] == []


@pytest.mark.parametrize(
    ("where", "changes"),
    [
        ("$.optimizer", {"optimizer": {"name": "sgd", "learning_rat": 0.1}}),
        ("$.optimizer", {"optimizer": {"name": "sgd", "learning_rate": -1}}),
        ("$.model", {"model": {"name": "cnn", "hidden": [8, 8]}}),
        ("$.dataset", {"dataset": {"name": "digits", "split": "letters"}}),
        ("$.strategy", {"strategy": []}),
        ("$.loggers", {"loggers": ["wandbb"]}),
        ("$.loggers", {"loggers": [{"name": "tensorboard", "entity": "me"}]}),
        ("$.sequence.n_tasks", {"sequence": {"n_tasks": 0}}),
        ("$", {"sed": 1}),
    ],
    ids=str,
)
def test_the_schema_refuses_what_clray_refuses(clray_says: Any, where: str, changes: dict[str, Any]) -> None:
    validator = schema(clray_says, "experiment")
    assert list(validator.iter_errors(experiment())) == []
    assert list(validator.iter_errors(experiment(model={"name": "my.models:Net", "anything": 1}))) == []
    named = ["tensorboard", {"name": "wandb", "entity": "me"}, "my.loggers:Lines"]
    assert list(validator.iter_errors(experiment(loggers=named))) == []
    assert [error.json_path for error in validator.iter_errors(experiment(**changes))] == [where]


def test_data_prepare_says_what_it_prepared_and_where(clray_says: Any) -> None:
    code, out, _ = clray_says("data", "prepare", "digits", "--set", "pad=1")
    assert code == 0
    start = "digits: 1433 training and 364 test images of 10 classes, (10, 10, 1) float32, in "
    assert out.startswith(start)
    assert (Path(out.removeprefix(start).strip()) / "meta.json").is_file()


def test_completion_comes_for_the_shell(tmp_path: Path) -> None:
    environment = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    shown = subprocess.run([CLRAY, "--show-completion", "bash"], capture_output=True, text=True, timeout=60, env=environment)
    assert shown.returncode == 0
    assert "complete -o default -F _clray_completion clray" in shown.stdout
    asked = {**os.environ, "_CLRAY_COMPLETE": "complete_bash", "COMP_WORDS": "clray s", "COMP_CWORD": "1"}
    completed = subprocess.run([CLRAY], capture_output=True, text=True, timeout=60, env=asked)
    assert completed.stdout.split() == ["sweep", "status", "schema"]
    mistyped = asked | {"COMP_WORDS": "clray swep x", "COMP_CWORD": "2"}
    silent = subprocess.run([CLRAY], capture_output=True, text=True, timeout=60, env=mistyped)
    assert (silent.returncode, silent.stdout.strip(), silent.stderr) == (0, "", "")


def test_a_run_leaves_results_and_says_where(clray_says: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "one.yaml", experiment())
    output = str(tmp_path / "out")
    code, out, err = clray_says("run", str(path), "-o", output, "--set", "seed=3")
    assert code == 0, err
    lines = out.splitlines()
    assert any(line.startswith(f"files: {output}/one/") for line in lines)
    (trial,) = clray.open(f"{output}/one").trial_ids
    assert lines[1].startswith(trial)
    assert err.startswith("1 trial: 1 to run")
    devices, _, seconds = lines[-1].partition("; seconds (phases overlap): ")
    assert re.fullmatch(r"devices: \d+ x \w+", devices)
    assert {part.split()[0] for part in seconds.split(", ")} >= {"import", "data", "compile", "train", "transfer", "write"}
    code, out, err = clray_says("run", str(path), "-o", output, "--set", "seed=3")
    assert (code, err.splitlines()[0]) == (0, "1 trial: 0 to run, 1 finished before")
    code, out, err = clray_says("run", str(path), "-o", output, "--set", "seed=4")
    assert code == 0
    assert "1 more trial with other settings in the same folder, kept" in out
    code, out, _ = clray_says("status", f"{output}/one")
    assert code == 0
    assert out.splitlines()[-1] == "2 done; no driver"


def test_a_precision_that_cpus_do_not_have_is_told(clray_says: Any, tmp_path: Path) -> None:
    if training_devices()[0].platform != "cpu":
        pytest.skip("GPUs have it")
    path = write(tmp_path / "one.yaml", experiment())
    code, out, err = clray_says("run", str(path), "-o", str(tmp_path), "--set", "training.precision=tf32")
    assert code == 0, err
    assert "cpu (which compute in float32, not tf32); seconds" in out


def test_a_trace_of_nothing_is_not_called_one(tmp_path: Path) -> None:
    write(tmp_path / "one.yaml", experiment())
    arguments = [CLRAY, "run", "one.yaml", "--profile", "trace"]
    said = [subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=100) for _ in range(2)]
    assert [each.returncode for each in said] == [0, 0], said
    assert "trace: trace/  (TensorBoard" in said[0].stderr
    trace = min(tmp_path.glob("trace/**/perfetto_trace.json.gz"))  # of the first run
    names = Counter(event.get("name", "") for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"])
    assert any("train_task" in name for name in names)
    assert not [name for name in names if name.startswith("$")], "calls of Python, which crowd out everything else in longer runs"
    assert any(re.match(r"dot|fusion|.*_fusion", name) for name in names), "what was computed, and not only who asked for it"
    assert "trace: " not in said[1].stderr
    assert "nothing was left to run, so trace/ holds an empty trace" in said[1].stderr


def test_a_trial_that_the_disk_cannot_hold_is_refused_before_it_writes(
    clray_says: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clray.trials.sweep.shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    path = write(tmp_path / "one.yaml", experiment())
    code, _, err = clray_says("run", str(path), "-o", str(tmp_path / "out"))
    assert code == 2
    assert re.search(r"t_\w+ would write [\d.]+ KiB by estimate, and 1000 B are free under .*Lower sequence.n_tasks", err)
    assert not list(tmp_path.rglob("trials"))


@pytest.mark.parametrize("command", ["run", "sweep"])
def test_a_network_that_the_memory_cannot_hold_is_refused_before_it_starts(clray_says: Any, tmp_path: Path, command: str) -> None:
    huge = experiment(model={"name": "mlp", "hidden": [1_000_000, 1_000_000]}, logging={"log_frequency": 4, "weights": False})
    path = write(tmp_path / "huge.yaml", huge if command == "run" else sweep("huge", huge))
    code, _, err = clray_says(command, str(path), "-o", str(tmp_path / "out"))
    assert code == 2
    assert re.search(r"t_\w+ needs at least [\d.]+ TiB of memory, and this machine has [\d.]+ GiB: twice [\d.]+ TiB for parameters", err)
    assert not list(tmp_path.rglob("trials"))


def test_what_is_needed_does_not_name_what_may_be_left_out() -> None:
    with pytest.raises(ConfigError, match="needed here: sequence, dataset, model, optimizer, training"):
        clray.run({"name": "x"})


def test_a_width_that_is_none_is_told_before_anything_starts(clray_says: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLRAY_LANE_WIDTH", "abc")
    code, _, err = clray_says("sweep", str(write(tmp_path / "two.yaml", sweep("two", experiment()))), "-o", str(tmp_path / "out"))
    assert (code, err.strip()) == (2, "clray: CLRAY_LANE_WIDTH=abc: not a number of lanes; use 1 or more, or leave it out")
    assert not (tmp_path / "out").exists()


def test_diverged_repeats_are_told(clray_says: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "one.yaml", experiment(n_repeats=2, optimizer={"name": "sgd", "learning_rate": 1e30}))
    code, out, err = clray_says("run", str(path), "-o", str(tmp_path))
    assert code == 0
    assert re.search(r"1/1 t_\w+ diverged, accuracy -, 2 repeats diverged", err)
    assert "diverged repeats" in out.splitlines()[0]


def test_quiet_says_nothing_when_all_is_well(clray_says: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "one.yaml", experiment())
    assert clray_says("run", str(path), "-o", str(tmp_path), "-q") == (0, "", "")


def test_run_says_that_it_leaves_the_axes_of_a_sweep_alone(clray_says: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "s.yaml", sweep(grid={"seed": [1, 2]}, zip={"n_repeats": [1]}))
    code, _, err = clray_says("run", str(path), "-o", str(tmp_path))
    assert code == 0
    assert err.splitlines()[0] == f"{path} is a sweep: running its base experiment, without grid, zip. All of it: clray sweep {path}"


@pytest.mark.parametrize(("command", "options"), [("sweep", ["--local"]), ("run", [])])
def test_a_folder_that_another_driver_holds_is_left_alone_unless_forced(
    clray_says: Any, tmp_path: Path, command: str, options: list[str]
) -> None:
    path = write(tmp_path / "small.yaml", sweep(cases=[{}]) if command == "sweep" else experiment())
    arguments = (command, str(path), "-o", str(tmp_path / "out"), *options)
    folder = tmp_path / "out" / "small"
    with Lease.claim(Storage.of(folder)) as lease:
        code, _, err = clray_says(*arguments)
        assert code == 1
        assert f"is driven by process {os.getpid()} on {socket.gethostname()} since 20" in err
        assert "--force" in err
        assert [item.name for item in folder.iterdir()] == [".lease"]
        code, _, err = clray_says(*arguments, "--force")
        assert code == 0, err
        with pytest.raises(LeaseLostError, match=f"was taken over by process {os.getpid()} on"):
            lease.look()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_says_how_to_go_on_and_goes_on(tmp_path: Path, number: int, code: int) -> None:
    long = experiment(
        sequence={"n_tasks": 4}, training={"steps": 6000, "batch_size": 16}, logging={"log_frequency": 6000, "n_subsamples": 4}
    )
    write(tmp_path / "long run.yaml", long | {"name": "long"})
    arguments = [CLRAY, "run", "long run.yaml", "-o", "out"]
    running = subprocess.Popen(arguments, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 90
    while not list(tmp_path.glob("out/long/trials/*/task_000/COMMIT.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(number)
    _, said = running.communicate(timeout=10)  # the promise: it ends within 10 s
    assert running.returncode == code, said
    assert "To go on: clray run 'long run.yaml' -o out" in said
    assert "Traceback" not in said
    status = subprocess.run([CLRAY, "status", "out/long"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert status.stdout.splitlines()[-1] == "1 interrupted; no driver"
    commits = {path: path.read_bytes() for path in tmp_path.glob("out/long/trials/*/*/COMMIT.json")}
    finished = subprocess.run([*arguments, "-q"], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert finished.returncode == 0, finished.stderr
    assert all(path.read_bytes() == content for path, content in commits.items())
    assert clray.open(tmp_path / "out" / "long").trials.status.tolist() == ["done"]


def signalled(body: str, *numbers: int, grace: float = 1.0) -> tuple[int, str]:
    """Exit code and stderr of a process that runs ``body`` under ``resumable`` and gets signals once it has printed a line each."""
    head = f"import sys, time\nfrom clray import signals\nfrom clray.cli import main\nsignals.GRACE_SECONDS = {grace}\n"
    end = f"sys.argv = ['clray', 'run', 'f.yaml']\ntry:\n    with signals.resumable() as stops:\n{textwrap.indent(body, ' ' * 8)}\n"
    end += "except SystemExit as end:\n    print('in order', flush=True)\n    raise\n"
    process = subprocess.Popen([sys.executable, "-c", head + end], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for number in numbers:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return process.returncode, out + err


READY = "print('ready', flush=True)\ntime.sleep(60)"


@pytest.mark.parametrize(
    ("body", "numbers", "code", "in_order"),
    [
        (READY, [signal.SIGTERM], 143, False),  # nothing has begun: nothing to bring to an end
        (f"stops.begin()\n{READY}", [signal.SIGINT], 130, True),
        (
            f"stops.begin()\ntry:\n    {READY.replace(chr(10), '; ')}\nexcept BaseException:\n    raise ImportError('x')",
            [signal.SIGINT],
            130,
            True,
        ),
        (
            f"stops.begin()\ntry:\n    {READY.replace(chr(10), '; ')}\nexcept BaseException:\n    time.sleep(60)",
            [signal.SIGTERM],
            143,
            False,
        ),
        (
            f"stops.begin()\ntry:\n    {READY.replace(chr(10), '; ')}\nexcept BaseException:\n    {READY.replace(chr(10), '; ')}",
            [signal.SIGINT, signal.SIGINT],
            130,
            False,
        ),
        ("stops.begin()\nprint('ready')\nsys.exit(15)", [], 143, True),  # what Ray's handler does while it connects
    ],
    ids=["before it begins", "in order", "turned into another error", "swallowed", "impatient", "Ray's own handler"],
)
def test_signals_end_the_process_with_their_code_whatever_becomes_of_the_interrupt(
    body: str, numbers: list[int], code: int, in_order: bool
) -> None:
    returned, said = signalled(body, *numbers, grace=30.0 if in_order else 1.0)  # a machine with much to do may stop for a second
    assert returned == code
    assert said.count("interrupted; finished work is kept. To go on: clray run f.yaml") == 1
    assert ("in order" in said) == in_order


@pytest.mark.parametrize("target", ["a-file", "/proc/nowhere", "memory://trace", "file:///tmp/trace"])
def test_a_trace_that_cannot_be_written_is_refused_before_anything_is_trained(tmp_path: Path, clray_says: Any, target: str) -> None:
    (tmp_path / "a-file").touch()
    path = tmp_path / "one.yaml"
    path.write_text(json.dumps(experiment()))
    target = target if "/" in target else str(tmp_path / target)
    code, _, err = clray_says("run", str(path), "-o", str(tmp_path / "out"), "--profile", target)
    assert code == 2
    assert err.startswith("clray: --profile: ")
    assert not (tmp_path / "out").exists()


def test_a_finished_trial_that_is_gone_is_damage_until_it_ran_again(tmp_path: Path, clray_says: Any) -> None:
    path = tmp_path / "two.yaml"
    path.write_text(json.dumps({"name": "two", "experiment": experiment(), "grid": {"seed": [1, 2]}}))
    command = ("sweep", str(path), "--local", "-o", str(tmp_path))
    assert clray_says(*command)[0] == 0
    assert clray_says("status", str(tmp_path / "two"), "--verify")[0] == 0
    gone = sorted((tmp_path / "two" / "trials").iterdir())[0]
    shutil.rmtree(gone)
    code, out, _ = clray_says("status", str(tmp_path / "two"), "--verify")
    assert code == 1
    told = [line for line in out.splitlines() if line.startswith(gone.name)]
    assert "is gone, though trials.parquet has it as finished" in told[0]
    found = json.loads(clray_says("status", str(tmp_path / "two"), "--verify", "--set-aside", "--json")[1])
    assert [damage["trial_id"] for damage in found["damaged"]] == [gone.name]
    assert clray_says(*command)[0] == 0
    assert clray_says("status", str(tmp_path / "two"), "--verify")[0] == 0
