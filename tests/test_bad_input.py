"""Through the command: whatever is wrong is one message with file, line or key and what is valid, exit code 2, and nothing is left behind.

What single values may be is in ``test_documents``, what fits together in ``trials/test_plan``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clray.cli import main
from tests.trials.sweeps import experiment, sweep, write

Refused = Callable[..., str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with one good experiment and one good sweep."""
    write(tmp_path / "good.yaml", experiment())
    write(tmp_path / "sweep.yaml", sweep(grid={"seed": [1, 2]}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """A function that gives a command, checks how it is refused and that it leaves nothing, and returns the message."""

    def run(*arguments: str) -> str:
        before = sorted(folder.rglob("*"))
        monkeypatch.setattr(sys, "argv", ["clray", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        out = capsys.readouterr()
        assert end.value.code == 2, out.err
        assert out.out == ""
        assert out.err.startswith("clray: ")
        assert "Traceback" not in out.err
        assert [path for path in sorted(folder.rglob("*")) if path not in before and "__pycache__" not in path.parts] == []
        return out.err.removeprefix("clray: ").rstrip("\n")

    return run


def test_files_that_are_none(refused: Refused, folder: Path) -> None:
    assert refused("run", "nowhere.yaml") == "nowhere.yaml: no such file"
    assert refused("run", ".") == ".: cannot be read: Is a directory"
    for name, content, message in (
        ("empty", b"", "the top level must be a table (key: value lines), not nothing"),
        ("picture", b"\x89PNG\r\n\x1a\n", "byte 0 is not UTF-8; save the file as UTF-8 text"),
        ("utf16", "name: x\n".encode("utf-16"), "byte 0 is not UTF-8; save the file as UTF-8 text"),
    ):
        (folder / name).write_bytes(content)
        assert refused("sweep", name).endswith(message)


def test_an_experiment_given_to_sweep_is_sent_to_run(refused: Refused) -> None:
    message = refused("sweep", "good.yaml")
    assert message.startswith("good.yaml: this looks like one experiment: run it with 'clray run good.yaml'")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "bad.yaml:1: experiment: must be a table or the path of an experiment file, got 3"),
        ([1], "bad.yaml:1: experiment: must be a table or the path of an experiment file, got [1]"),
        ("nowhere.yaml", "bad.yaml:1: experiment: nowhere.yaml: no such file"),
        ("sweep.yaml", "bad.yaml:1: experiment: sweep.yaml is a sweep itself; name the file of one experiment"),
    ],
    ids=str,
)
def test_a_sweep_without_an_experiment(refused: Refused, folder: Path, given: Any, message: str) -> None:
    (folder / "bad.yaml").write_text(json.dumps({"name": "s", "experiment": given}))
    assert refused("sweep", "bad.yaml") == message
    (folder / "bad.yaml").write_text("name: s\n")
    assert refused("sweep", "bad.yaml").endswith("experiment: must be a table or the path of an experiment file, got nothing")


AXES: list[tuple[str, str]] = [
    ("grid: {}", ":10: grid: is empty; give at least one dotted key with a list of values, or leave it out"),
    ("grid:", ":10: grid: is empty"),
    ("zip: {}", ":10: zip: is empty"),
    ("grid:\n  seed: []", ":11: grid.seed is empty; give at least one value"),
    ("grid:\n  seed: 3", ":11: grid.seed: must be a list, got 3"),
    ("grid:\n  seed:", ":11: grid.seed: must be a list, got nothing"),
    ("grid:\n  optimizer: {learning_rate: [0.1]}", ':11: grid.optimizer: must be a list, got {"learning_rate": [0.1]}'),
    ("grid:\n  optimizer.learning_rate: [0.1, .nan]", ":11: grid.optimizer.learning_rate.1: must be a finite number, got nan"),
    ("grid:\n  optimizer.learning_rat: [0.1]", ":11: grid.optimizer.learning_rat: unknown key; did you mean 'learning_rate'? valid: "),
    ("grid:\n  optimiser.learning_rate: [0.1]", ":11: grid.optimiser.learning_rate: optimiser: unknown key; did you mean 'optimizer'?"),
    ("grid:\n  model.widths: [[8]]", ":11: grid.model.widths: unknown key; valid: activation, hidden, init, name"),
    ("grid:\n  seed.x: [1]", ':11: grid.seed.x: seed: must be a whole number, got {"x": 1}'),
    ("grid:\n  model.hidden.7: [1]", ":11: grid.model.hidden.7: 'model.hidden.7' goes through a list of 1 items; use a number below that"),
    ("grid:\n  training..epochs: [1]", ":11: grid.training..epochs: 'training..epochs' is not a dotted key"),
    ("zip:\n  training.epochs: [1, 2]\n  seed: [1]", ":10: zip lists advance together and must be of equal length: training.epochs has"),
    ("cases: []", ":10: cases is empty; give at least one point or leave it out"),
    ("cases: [3]", ":10: cases.0: must be a table, got 3"),
    ("cases:\n- {seed: 1}\n- {training.epoch: 1}", ":12: cases[1].training.epoch: unknown key; did you mean 'epochs'?"),
    ("cases:\n- training: {epoch: 1}", ":11: cases[0].training: training.epoch: unknown key; did you mean 'epochs'?"),
    ("random: {n: 0, keys: {seed: {int: [1, 2]}}}", ":10: random.n: must be greater than or equal to 1, got 0"),
    ("random: {n: 1, keys: {}}", ":10: random.keys: must be a table with at least one key, got {}"),
    ("random: {keys: {seed: {int: [1, 2]}}}", ":10: random.n: is missing; needed here: n, keys"),
    ("random: {n: 1, keys: {seed: {int: [2, 1]}}}", ":10: random.keys: seed: int takes [low, high], two whole numbers with low < high"),
    ("random: {n: 1, keys: {seed: {int: [0, 1e400]}}}", ":10: random.keys.seed.int.1: must be a finite number, got inf"),
    ("random: {n: 1, keys: {seed: {int: [0, 99999999999999999999]}}}", ":10: random.keys.seed.int.1: must be a whole number up to"),
    ("random: {n: 1, keys: {seed: {whole: [0, 1]}}}", ":10: random.keys: seed needs exactly one of uniform, loguniform, int, choice"),
    ("grid:\n  seed: [1]\nzip:\n  seed: [2]", ":11: grid.seed and zip.seed set the same value; keep one of them"),
    ("random: {n: 1000000000, keys: {seed: {int: [0, 1]}}}", "together make 1000000000 points, and 100000 is the most"),
    ("resources: {num_gpus: 1.5}", ":10: resources.num_gpus: num_gpus above 1 must be a whole number"),
    ("resources: {num_gpu: 1}", ":10: resources.num_gpu: unknown key; did you mean 'num_gpus'? valid: max_lanes, num_cpus, num_gpus"),
    ("gird: {}", ":10: gird: unknown key; did you mean 'grid'? valid: cases, experiment, grid, name, random, resources, zip"),
]  # fmt: skip

SWEEP = """\
name: bad
experiment:
  sequence: {n_tasks: 2}
  dataset: {name: digits}
  model: {name: mlp, hidden: [8]}
  optimizer: {name: sgd}
  training: {epochs: 1}
  logging: {log_frequency: 1}

"""


@pytest.mark.parametrize(("axes", "message"), AXES, ids=[axes.replace("\n", " ")[:50] for axes, _ in AXES])
def test_axes_that_cannot_be(refused: Refused, folder: Path, axes: str, message: str) -> None:
    (folder / "bad.yaml").write_text(SWEEP + axes + "\n")
    said = refused("sweep", "bad.yaml")
    assert said.startswith("bad.yaml")
    assert message in said


@pytest.mark.parametrize("name", ["../x", "a/b", "/etc/x", "..", ".x", "-x", "", "a b", "a\nb", "x" * 101, "é"])
@pytest.mark.parametrize("command", ["run", "sweep"])
def test_names_cannot_lead_out_of_the_output(refused: Refused, folder: Path, command: str, name: str) -> None:
    data = {"name": name, **experiment()} if command == "run" else sweep(name)
    write(folder / "bad.yaml", data)
    place = "bad.yaml:2: name: must be 1 to 100 letters, digits, '.', '_' or '-', the first a letter or digit, got "
    assert refused(command, "bad.yaml", "-o", "out").startswith(place)


def test_a_file_whose_name_is_no_name_asks_for_one(refused: Refused, folder: Path) -> None:
    write(folder / "my experiment.yaml", experiment())
    assert refused("run", "my experiment.yaml").startswith("my experiment.yaml: file name: must be 1 to 100 letters")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("seed", "--set 'seed': expected dotted.key=value, such as optimizer.learning_rate=0.03"),
        ("model.hidden=[8", "--set model.hidden=[8:1:3: expected ',' or ']', but got '<stream end>'"),
        ("n_repeats.x=3", "--set n_repeats.x: 'n_repeats.x' goes through 2, which is not a table"),
        ("seed.x=3", '--set seed.x: seed: must be a whole number, got {"x": 3}'),
        ("optimizer.lr=3", "--set optimizer.lr: unknown key; did you mean 'learning_rate'? valid: learning_rate, momentum"),
        ("model={name: mlp, hiden: [3]}", "--set model: model.hiden: unknown key; did you mean 'hidden'?"),
        ("model.name=mpl", "--set model.name: unknown model 'mpl'; did you mean 'mlp'? valid: cnn, mlp; or package.module:attribute"),
        ("training.batch_size=1000", "--set training.batch_size: 1000 is larger than the 40 training samples of a task; use at most that"),
        ("grid.seed=3", "--set grid.seed: grid: unknown key; valid: baselines, dataset"),
        (
            "model.name=json:loads",
            "--set model.name: 'json:loads' must be a class that derives from clray.options.ModelOptions, got <function",
        ),
        ("model.name=json:Net", "--set model.name: cannot load 'json:Net': AttributeError: module 'json' has no attribute 'Net'"),
        ("model.name=:Net", "--set model.name: cannot load ':Net': "),
        ("optimizer.name=clray.models.mlp:MLP", "must be a class that derives from clray.options.OptimizerOptions, got <class"),
        ("dataset.name=arrays", ": dataset arrays needs dataset.root, the folder that holds X_train.npy"),
    ],
)
def test_settings_that_cannot_be(refused: Refused, setting: str, message: str) -> None:
    assert message in refused("run", "good.yaml", "--set", setting)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def f():\n    return 1 / 0\n\nf()\n", "ZeroDivisionError: division by zero (HERE:2)"),
        ("import nothing_of_this_name\n", "ModuleNotFoundError: No module named 'nothing_of_this_name' (HERE:1)"),
        ("class Net(:\n", "SyntaxError: invalid syntax (bad_module_2.py, line 1)"),
    ],
)
def test_a_module_of_ones_own_that_fails_says_where(
    refused: Refused, folder: Path, source: str, message: str, request: pytest.FixtureRequest
) -> None:
    number = request.node.callspec.indices["source"]
    path = folder / f"bad_module_{number}.py"
    path.write_text(source)
    said = refused("run", "good.yaml", "--set", f"model.name=bad_module_{number}:Net")
    assert said == f"--set model.name: cannot load 'bad_module_{number}:Net': {message.replace('HERE', str(path))}"


def test_arrays_that_are_missing_truncated_or_no_arrays(refused: Refused, folder: Path) -> None:
    root = folder / "arrays"
    root.mkdir()
    given = ("run", "good.yaml", "--set", f"dataset={{name: arrays, root: {root}}}", "--set", "training.batch_size=4")
    assert f"{root / 'X_train.npy'}: no such file" in refused(*given)
    for part, n in (("train", 40), ("test", 20)):
        np.save(root / f"X_{part}.npy", np.zeros((n, 6), np.float32))
        np.save(root / f"y_{part}.npy", np.arange(n) % 4)
    whole = (root / "X_train.npy").read_bytes()
    for content in (whole[:-10], whole[:20], b"", b"not an array"):
        (root / "X_train.npy").write_bytes(content)
        assert refused(*given).startswith(f"{root / 'X_train.npy'}: truncated or not a plain .npy array")
    (root / "X_train.npy").write_bytes(whole)
    np.save(root / "y_train.npy", np.arange(40) % 3)
    assert "dataset: class 3 has no training images; number the classes 0 to K-1" in refused(*given)


def test_folders_of_images_that_are_none(refused: Refused, folder: Path) -> None:
    root = folder / "images"
    given = ("run", "good.yaml", "--set", f"dataset={{name: image_folder, root: {root}}}")
    assert refused(*given).startswith(f"{root / 'train'}: no such folder; an image folder holds train/CLASS/* and test/CLASS/*")
    for name in ("train/a", "train/b", "test/a"):
        (root / name).mkdir(parents=True)
    assert refused(*given).startswith(f"{root}: train and test need the same class folders; only in one of them: b")
    (root / "test" / "b").mkdir()
    assert refused(*given).startswith(f"{root / 'train' / 'a'}: no image files")
    for name in ("train/a", "train/b", "test/a", "test/b"):
        (root / name / "x.png").write_bytes(b"no image")
    assert refused(*given).startswith(f"{root / 'train' / 'a' / 'x.png'}: not a readable image")


def test_files_of_a_named_set_that_are_truncated(refused: Refused, folder: Path) -> None:
    raw = folder / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = raw / "train-images-idx3-ubyte"
    images.write_bytes(b"\0\0\x08\x03" + (60000).to_bytes(4, "big") + (28).to_bytes(4, "big") * 2 + bytes(1000))
    message = refused("run", "good.yaml", "--set", f"dataset={{name: mnist, root: {folder / 'data'}}}")
    assert message.startswith(f"{images}: truncated or damaged (its header announces 47040016 bytes, it has 1016); delete it")


@pytest.mark.parametrize("command", ["run", "sweep"])
@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("good.yaml", "--output: cannot write to HERE/good.yaml/NAME: HERE/good.yaml is a file, not a folder; move it away, or choose"),
        ("good.yaml/below", "--output: cannot write to HERE/good.yaml/below/NAME: HERE/good.yaml is a file, not a folder"),
        ("/proc/clray", "--output: cannot write to /proc/clray/NAME: [Errno 2] No such file or directory"),
        ("x" * 300, "[Errno 36] File name too long"),
        ("foo://bucket/x", "--output: no file system is known for foo://: valid: file, gs, memory, s3, or a plain path"),
        ("s33://bucket/x", "did you mean 's3'?"),
        ("s3:/bucket/x", "--output: 's3:/bucket/x' is neither a path nor a URL"),
        ("s3://", "--output: s3:// cannot be an output"),
        ("", "--output: '' is not a path: give a folder, or a URL such as s3://bucket/folder"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_outputs_that_cannot_be_written(refused: Refused, folder: Path, command: str, output: str, message: str) -> None:
    file, name = {"run": ("good.yaml", "good"), "sweep": ("sweep.yaml", "small")}[command]
    said = refused(command, file, "-o", output)
    assert message.replace("HERE", str(folder)).replace("NAME", name) in said


def test_options_that_contradict_each_other(refused: Refused) -> None:
    message = refused("sweep", "sweep.yaml", "--local", "--address", "auto")
    assert message == "--local runs without Ray and --address names a Ray cluster: give one of them"
    assert refused("data", "prepare", "mnits").startswith("data set: name: unknown dataset 'mnits'; did you mean 'mnist'?")
    assert refused("data", "prepare", "digits", "--set", "resize=-3") == "--set resize: must be greater than or equal to 1, got -3"
    assert refused("status", "nowhere").endswith("nowhere: no sweep here. Give the folder of one sweep, such as results/quickstart")
    for command in ("status", "table", "report"):
        assert refused(command, "sweep.yaml").endswith("is a file, not a folder; give the folder of one sweep, such as results/quickstart")


def test_commands_that_are_none(refused: Refused) -> None:
    assert refused("swep", "sweep.yaml").startswith("no command 'swep'; did you mean 'sweep'? valid: data, list, ")
    assert refused("data", "get") == "no command 'get'; valid: prepare"


def test_nothing_heavy_is_imported_to_say_that_the_input_is_wrong(folder: Path) -> None:
    """Neither torch nor Ray takes part, and a file that does not parse needs no JAX either: that keeps it under 2 s."""
    (folder / "broken.yaml").write_text("name: [\n")
    code = textwrap.dedent("""\
        import sys
        from clray.cli import main
        sys.argv = ["clray", *sys.argv[1:]]
        try:
            main()
        except SystemExit as end:
            print(end.code, [name for name in ("ray", "torch", "torchvision", "pandas", "pyarrow", "jax") if name in sys.modules])
        """)
    for arguments, imported in (
        (["run", "broken.yaml"], "[]"),
        (["run", "good.yaml", "--set", "seed"], "[]"),
        (["sweep", "sweep.yaml", "--set", "seed=3"], "[]"),
        (["run", "good.yaml", "--set", "sequence.n_tasks=6"], "['jax']"),
        (["sweep", "sweep.yaml", "--set", "training.batch_size=1000"], "['jax']"),
        (["run", "good.yaml", "--set", "dataset={name: arrays, root: nowhere}"], "['jax']"),
    ):
        done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=folder, capture_output=True, text=True, timeout=60)
        assert done.stdout == f"2 {imported}\n", done.stdout + done.stderr


STRATEGY = """\
name: s
sequence: {n_tasks: 2, policy: POLICY}
dataset: {name: digits}
model: {name: mlp, hidden: [4]}
optimizer: {name: sgd, learning_rate: 0.1}
training:
  steps: 9
  boundaries: BOUNDARIES
strategy:
- {name: l2}
- STRATEGY
logging: {log_frequency: 3}
"""

WRONG_STRATEGIES: list[tuple[str, str, str, str]] = [
    (
        "{name: si, importence: 1}",
        "given",
        "disjoint",
        "bad.yaml:11: strategy.1.importence: unknown key; did you mean 'importance'? valid: ",
    ),
    ("{name: cumulative, size: 1}", "given", "disjoint", "bad.yaml:11: strategy.1.size: unknown key; valid: name"),
    ("{name: der, alpha: -1}", "given", "disjoint", "bad.yaml:11: strategy.1.alpha: must be greater than or equal to 0, got -1"),
    (
        "{name: er, memory_size: 9999}",
        "given",
        "disjoint",
        "bad.yaml:11: strategy.1.memory_size: 9999 is larger than the 556 training samples",
    ),
    (
        "{name: cumulative}",
        "given",
        "reuse",
        "bad.yaml:11: strategy.1.name: cumulative trains on all tasks so far at once, but with policy reuse",
    ),
    (
        "{name: mas}",
        "detected",
        "disjoint",
        "bad.yaml:11: strategy.1.name: mas does not work with training.boundaries: detected: its importances",
    ),
    ("{name: si}", "{window: 10}", "disjoint", "bad.yaml:8: training.boundaries.window: 10 is larger than the 9 batches of a task"),
    ("{name: si}", "{treshold: 0.1}", "disjoint", "bad.yaml:8: training.boundaries.treshold: unknown key; did you mean 'threshold'?"),
    ("{name: si}", "sometimes", "disjoint", "bad.yaml:8: training.boundaries"),
]


@pytest.mark.parametrize(("strategy", "boundaries", "policy", "message"), WRONG_STRATEGIES)
def test_strategies(refused: Refused, folder: Path, strategy: str, boundaries: str, policy: str, message: str) -> None:
    text = STRATEGY.replace("STRATEGY", strategy).replace("BOUNDARIES", boundaries).replace("POLICY", policy)
    (folder / "bad.yaml").write_text(text)
    assert refused("run", "bad.yaml").startswith(message)
    # At a point of a sweep the axis is named.
    (folder / "sweep.yaml").write_text("name: sweep\nexperiment: bad.yaml\ngrid: {seed: [1, 2]}\n")
    assert message.partition(": ")[2] in refused("sweep", "sweep.yaml")
