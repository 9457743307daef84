"""What clray promises about trust: it never unpickles or evaluates, nothing leads out of the output, and no secret is written or shown."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import clray
from clray.errors import OutputError
from clray.store.filesystem import Storage, hide_credentials
from clray.store.layout import SweepLayout
from clray.trials.show_status import print_status, trial_ids
from clray.trials.status import TrialStatus
from clray.trials.table import row_of, to_arrow
from tests.faults.in_process import printed
from tests.trials.sweeps import sweep, write

PACKAGE = Path(clray.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "jsonpickle"}
UNSAFE_NAMES = {"eval", "exec", "compile", "__import__"}
SECRET = "FAKE5ECRETwJalrXUtnFEMI"


def problems_in(tree: ast.AST) -> Iterator[str]:
    """Ways of running what is only data."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (f"import {alias.name}" for alias in node.names if alias.name.split(".")[0] in UNSAFE_MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNSAFE_MODULES:
            yield f"from {node.module} import"
        elif isinstance(node, ast.Call):
            yield from _unsafe_call(node)


def _unsafe_call(node: ast.Call) -> Iterator[str]:
    name = ast.unparse(node.func)
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    if name in UNSAFE_NAMES or name in ("os.system", "os.popen", "builtins.eval", "builtins.exec"):
        yield name
    if given.get("allow_pickle", "False") != "False" or given.get("shell", "False") != "False":
        yield f"{name} with allow_pickle or shell"
    if name in ("np.load", "numpy.load") and given.get("allow_pickle") != "False":
        yield f"{name} without allow_pickle=False"
    if name in ("torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "pd.read_pickle", "pandas.read_pickle") and given:
        yield name
    if name == "YAML" and given.get("typ") not in ("'safe'", "'rt'"):
        yield "YAML without a safe loader"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_unpickles_or_evaluates(path: Path) -> None:
    assert list(problems_in(ast.parse(path.read_text()))) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from cloudpickle import dumps",
        "eval('1')",
        "np.load(p)",
        "np.load(p, allow_pickle=True)",
        "np.save(p, a, allow_pickle=True)",
        "YAML()",
        "YAML(typ='unsafe')",
        "subprocess.run('ls', shell=True)",
        "torch.load(p, weights_only=False)",
    ],
)
def test_the_search_finds_what_it_is_for(text: str) -> None:
    assert list(problems_in(ast.parse(text)))


IDS = ["../../outside", "..", "/etc", "a/b", "", "t_\x00", "t_1\n", ".hidden/../..", "~", "-rf"]


@pytest.mark.parametrize("trial_id", IDS)
def test_ids_of_a_table_cannot_leave_the_folder(tmp_path: Path, trial_id: str) -> None:
    storage = Storage.of(tmp_path / "sweep")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "RESULT.json").write_text(json.dumps({"status": "done", "n_tasks": 1, "attempts": 1}))
    rows = [row_of(name, {}, TrialStatus("done")) for name in (trial_id, "t_0000000001")]
    storage.replace_bytes("sweep.yaml", b"name: x\n")
    pq.write_table(to_arrow(rows), storage.local_path("trials.parquet"))
    assert trial_ids(storage) == ["t_0000000001"]
    print_status(storage.root)
    results = clray.open(storage.root)
    assert list(results.trials["trial_id"]) == ["t_0000000001"]
    with pytest.raises(OutputError):
        results.trial(trial_id or "t_9")


@pytest.mark.parametrize("trial_id", [trial_id for trial_id in IDS if trial_id != "a/b"])  # which stays below
def test_ids_cannot_become_paths(trial_id: str) -> None:
    with pytest.raises(OutputError, match="cannot be a path|not a valid name"):
        SweepLayout().trial(trial_id)


def test_a_result_names_no_path(tmp_path: Path) -> None:
    """RESULT.json has an id in it, which is not used to find anything."""
    storage = Storage.of(tmp_path)
    trial = SweepLayout().trial("t_0000000001")
    result = {"status": "done", "n_tasks": 1, "attempts": 1, "trial_id": "../../../etc", "files": {"../../x": "00"}}
    storage.replace_bytes(trial.result, json.dumps(result).encode())
    storage.replace_bytes("sweep.yaml", b"name: x\n")
    assert clray.open(tmp_path).trial("t_0").trial_id == "t_0000000001"


def test_links_are_not_followed_when_something_is_removed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "data").write_text("keep")
    storage = Storage.of(tmp_path / "sweep")
    storage.replace_bytes("trials/t_1/config.yaml", b"x")
    folder = storage.local_path("trials/t_1")
    (folder / "task_000.tmp-001-a").symlink_to(precious)
    (folder / "task_001").symlink_to(precious)
    from clray.store.upkeep import discard_uncommitted, set_aside

    discard_uncommitted(storage, SweepLayout().trial("t_1"))
    assert (precious / "data").read_text() == "keep"
    (folder / "task_002").symlink_to(precious)
    set_aside(storage, SweepLayout().trial("t_1"), "task_002")
    assert (precious / "data").read_text() == "keep"
    storage.remove_tree("trials/t_1")
    assert (precious / "data").read_text() == "keep"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"s3://AKIAKEY:{SECRET}@bucket/f", "s3://bucket/f"),
        (f"s3://AKIAKEY:{SECRET[:6]}/{SECRET[6:]}@bucket/f", "s3://bucket/f"),
        (f"sftp://me:{SECRET}@host/out", "sftp://host/out"),
        (f'Could not connect to the endpoint URL: "http://me:{SECRET}@host:9000/b?X-Amz-Signature={SECRET}"', None),
        (f"gs://bucket/f?token={SECRET}&x=1", "gs://bucket/f?token=***&x=1"),
        ("s3://bucket/out@home", "s3://bucket/out@home"),
        ("http://127.0.0.1:9000/bucket/a@b", "http://127.0.0.1:9000/bucket/a@b"),
        ("/results/me:you@home", "/results/me:you@home"),
    ],
)
def test_credentials_in_urls_are_hidden(text: str, shown: str | None) -> None:
    assert SECRET not in hide_credentials(text)
    assert shown is None or hide_credentials(text) == shown


@pytest.mark.parametrize(
    "url", [f"s3://AKIAFAKE:{SECRET}@bucket/x", f"memory://a:{SECRET}@b/c", f"s3://bucket/x?token={SECRET}", f"s5://u:{SECRET}@h"]
)
@pytest.mark.parametrize("command", ["sweep", "run", "status", "report"])
def test_a_secret_in_a_url_is_refused_and_not_repeated(tmp_path: Path, url: str, command: str) -> None:
    file = write(tmp_path / "small.yaml", sweep(grid={"seed": [1]}))
    arguments = [str(file), "--output", url] if command in ("sweep", "run") else [url]
    code, out, err = printed(command, *arguments)
    assert code == 2, err
    assert SECRET not in out + err
    assert "AKIAFAKE" not in out + err
