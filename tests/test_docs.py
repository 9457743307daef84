"""README and docs/ do what they say: their commands and code run, their links lead somewhere, their tables are complete.

How blocks are written is said in CONTRIBUTING.md: `# name.yaml` or `# in name.yaml` as the first line, `# -> value` after an expression,
`<!-- not run: reason -->` on the line before. The pages about places to run install packages or need a cluster: there
`tests/test_cluster_files.py` checks the commands of Ray, and here those of clray and the tables are checked against what clray accepts.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pyarrow as pa
import pytest
import typer.main
from pydantic import BaseModel
from ruamel.yaml import YAML

from clray import plugins
from clray.cli import app
from clray.config import DISTRIBUTIONS, Experiment, RandomSearch, Resources, Sweep
from clray.documents import LISTS, PLUGIN_TABLES, Document, parse_experiment, read_yaml
from clray.options import Table
from clray.store import layout
from clray.trials.plan import plan_run, plan_sweep

REPOSITORY = Path(__file__).parents[1]
RUN_PAGE = Path(__file__).parent / "docs_support" / "run_page.py"
PAGES = ("README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((REPOSITORY / "docs").glob("*.md"))))
PLACES_TO_RUN = ("docs/one-machine.md", "docs/ray-cluster.md", "docs/cloud.md", "docs/slurm.md", "docs/kuberay.md")
TIMEOUT_SECONDS = 300

FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w+)\n(?P<body>.*?)^ *```$", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"<!-- not run: .+ -->\s*\Z")
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
CODE_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    where: str  # page:line
    language: str
    body: str
    runs: bool


def page(name: str) -> str:
    return (REPOSITORY / name).read_text()


def blocks(name: str) -> list[Block]:
    """The fenced blocks of a page, dedented."""
    text = page(name)
    found = []
    for match in FENCE.finditer(text):
        body = re.sub(rf"^{match['indent']}", "", match["body"], flags=re.MULTILINE)
        where = f"{name}:{text.count(chr(10), 0, match.start()) + 1}"
        found.append(Block(where, match["language"], body, NOT_RUN.search(text[: match.start()]) is None))
    return found


def block_called(name: str, file: str) -> dict[str, Any]:
    """The YAML block of a page that stands for ``file``."""
    (found,) = [block for block in blocks(name) if block.body.startswith(f"# {file}\n")]
    return YAML(typ="safe", pure=True).load(found.body)


def in_order(*names: str) -> list[Block]:
    """The blocks of pages as they run: files and commands of a page as they stand, then its Python."""
    ordered = []
    for name in names:
        run = [block for block in blocks(name) if block.runs and block.language in ("bash", "yaml", "python")]
        is_code = [block.language == "python" and not re.match(r"# [\w./-]+\.py\n", block.body) for block in run]
        ordered += [block for block, code in zip(run, is_code, strict=True) if not code]
        ordered += [block for block, code in zip(run, is_code, strict=True) if code]
    return ordered


def run_blocks(to_run: list[Block], folder: Path) -> None:
    """Runs blocks in ``folder``, which gets the files of the repository that pages name.

    XLA compiles without optimisation: the same program, in half the time.
    """
    for name in ("sweeps", "docs"):
        shutil.copytree(REPOSITORY / name, folder / name)
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "COLUMNS": "200",
    }
    listing = json.dumps([{"where": block.where, "language": block.language, "body": block.body} for block in to_run])
    done = subprocess.run(
        [sys.executable, str(RUN_PAGE)], input=listing, cwd=folder, env=environment, text=True, capture_output=True, timeout=TIMEOUT_SECONDS
    )
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-6000:]}"


def makefile_recipes() -> dict[str, list[str]]:
    """Target to the lines of its recipe."""
    recipes: dict[str, list[str]] = {}
    target = ""
    for line in page("Makefile").splitlines():
        if match := re.match(r"([\w./-]+):", line):
            target = match[1]
            recipes[target] = []
        elif line.startswith("\t"):
            recipes[target].append(line.strip())
    return recipes


# --- What a page tells people to run, runs --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def readme_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is there after README and docs/files.md were followed to the letter."""
    folder = tmp_path_factory.mktemp("readme")
    (sweep,) = [line.removeprefix("$(BIN)/") for line in makefile_recipes()["quickstart"]]
    quickstart = Block("Makefile: quickstart", "bash", f"{sweep} --local\n", runs=True)
    run_blocks([quickstart, *in_order("README.md", "docs/files.md")], folder)
    return folder


@pytest.mark.ray
def test_readme_and_files_page_run_as_written(readme_folder: Path) -> None:
    trials = pd.read_parquet(readme_folder / "results/quickstart/trials.parquet")
    assert (trials["status"] == "done").all()
    assert list(trials["param.optimizer.learning_rate"].value_counts().sort_index()) == [2, 2, 2, 2]
    assert (trials["attempts"] == 1).all()  # the second run of the sweep ran the two new trials only
    assert (readme_folder / "results/digits/trials.parquet").exists()


@pytest.mark.ray
def test_closing_table_of_the_readme_is_what_quickstart_prints(readme_folder: Path) -> None:
    trials = pd.read_parquet(readme_folder / "results/quickstart/trials.parquet").set_index("trial_id")
    (table,) = [block.body for block in blocks("README.md") if block.body.startswith("trial ")]
    rows = [line.split() for line in table.splitlines()[1:]]
    assert len(rows) == 6
    for trial_id, rate, hidden, acc, _, acc_sem, forgetting, _, forgetting_sem, _ in rows:
        row = trials.loc[trial_id]
        assert (float(rate), hidden) == (row["param.optimizer.learning_rate"], row["param.model.hidden"])
        # Other processors round differently, and what is learnt drifts apart; more than an error bar means: paste the table again.
        assert abs(float(acc) - row["acc_mean"]) < float(acc_sem), f"{trial_id}: ACC is {row['acc_mean']:.4f}"
        assert abs(float(forgetting) - row["forgetting_mean"]) < float(forgetting_sem), f"{trial_id}: {row['forgetting_mean']:.4f}"


@pytest.mark.ray
def test_every_file_that_a_run_leaves_is_on_the_files_page(readme_folder: Path) -> None:
    described = page("docs/files.md")
    for path in (readme_folder / "results").rglob("*"):
        name = re.sub(r"^weights\..+\.npy$", "weights.<parameter path>.npy", path.name)
        name = re.sub(r"^00\d\.json$", "001.json", re.sub(r"^\d{6}\.json$", "000001.json", name))
        name = re.sub(r"^task_\d{3}$", "task_000", re.sub(r"^t_[0-9a-f]{10}$", "t_xxxxxxxxxx", name))
        assert path.parent.name == "results" or name in described, f"docs/files.md does not mention {path.relative_to(readme_folder)}"


def test_own_plugins_of_the_extending_page_run_as_written(tmp_path: Path) -> None:
    run_blocks(in_order("docs/extending.md"), tmp_path)
    for name in ("my-data", "my-model", "my-strategy", "my-optimizer", "my-logger"):
        trials = pd.read_parquet(tmp_path / "results" / name / "trials.parquet")
        assert (trials["status"] == "done").all(), name


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs tensorboard: pip install tensorboard")
def test_the_loggers_page_runs_as_written(tmp_path: Path) -> None:
    run_blocks(in_order("docs/loggers.md"), tmp_path)
    assert len(list((tmp_path / "results/logged/tensorboard").glob("t_*/events.out.tfevents.*"))) == 4  # three tasks, final metrics


def test_examples_of_the_scenarios_page_run_as_written(tmp_path: Path) -> None:
    run_blocks(in_order("docs/scenarios.md"), tmp_path)
    for name in ("heads", "classes", "permuted", "rotated"):
        trials = pd.read_parquet(tmp_path / "results" / name / "trials.parquet")
        assert (trials["status"] == "done").all(), name


def test_the_table_of_ones_own_on_the_reproduction_page_runs_as_written(tmp_path: Path) -> None:
    run_blocks(in_order("docs/reproduction.md"), tmp_path)
    found = pd.read_parquet(tmp_path / "results/my-paper/reproduction.parquet")
    assert found[["method", "measured_n", "published_mean"]].to_numpy().tolist() == [["fine-tuning", 5, 70.0]]


def test_blocks_that_are_not_run_say_why_and_all_others_are() -> None:
    for name in PAGES:
        for block in blocks(name):
            assert block.language in ("bash", "yaml", "python", "text", "dockerfile"), block.where
    executed = {"README.md", "docs/files.md", "docs/extending.md", "docs/loggers.md", "docs/scenarios.md", "docs/reproduction.md"}
    executed |= {"docs/report.md", "docs/analysis.md"}  # by tests/report/test_pages_run.py
    skipped = [block for name in PAGES for block in blocks(name) if name not in executed and block.language in ("bash", "yaml", "python")]
    assert {block.where.split(":")[0] for block in skipped if block.runs} <= set(PLACES_TO_RUN)


def test_make_targets_of_the_readme_exist_and_ci_runs_its_test_command() -> None:
    opening = blocks("README.md")[0].body
    commands = [line.split("#")[0].strip() for line in opening.splitlines()]
    assert commands == ["make quickstart", "make test"]
    assert {command.split()[1] for command in commands} <= set(makefile_recipes())
    assert "make test" in page(".ci/run").splitlines()
    named = re.findall(r"(?:^|`)make (\w+)", "\n".join(map(page, PAGES)), re.MULTILINE)
    assert set(named) <= set(makefile_recipes())


# --- What a page mentions exists ---------------------------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """Ids that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", [*PAGES, "CHANGELOG.md"])
def test_relative_links_lead_to_files_and_headings_that_exist(name: str) -> None:
    for target in LINK.findall(FENCE.sub("", page(name))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (REPOSITORY / name).parent / path if path else REPOSITORY / name
        assert file.exists(), f"{name}: {target}"
        assert file.resolve().is_relative_to(REPOSITORY.resolve()), f"{name}: {target}"
        assert not anchor or anchor in anchors(file.read_text()), f"{name}: {target}"


def test_index_of_docs_lists_every_page() -> None:
    listed = {f"docs/{target}" for target in LINK.findall(page("docs/README.md"))}
    assert listed >= {name for name in PAGES if name.startswith("docs/")} - {"docs/README.md"}


def clray_commands(name: str) -> list[list[str]]:
    """The words of every call of clray in shell blocks and in the text, up to the next shell operator."""
    lines = [line for block in blocks(name) if block.language == "bash" for line in block.body.replace("\\\n", " ").splitlines()]
    spans = CODE_SPAN.findall(FENCE.sub("", page(name)))
    calls = []
    for text in [*lines, *spans]:
        start = re.match(r"\s*(?:[A-Z_]+=\S+ |.* -- |'?cd \S+ && )*(clray .*)", text)
        if start:
            words = shlex.shlex(start[1].rstrip("'"), posix=True, punctuation_chars=True)
            words.whitespace_split = True
            calls.append(list(itertools.takewhile(lambda word: not set(word) <= set("();<>|&"), words))[1:])
    return calls


def check_command(words: list[str]) -> None:
    """Parses a command line as clray would, and runs nothing."""
    root: Any = typer.main.get_command(app)
    if words[0].startswith("-"):
        assert words[0] in {name for parameter in root.params for name in parameter.opts} | set(root.context_settings["help_option_names"])
        return
    command, rest, names = root, words, ["clray"]
    while hasattr(command, "commands"):
        assert rest, f"{' '.join(names)} needs a command"
        assert rest[0] in command.commands, f"{' '.join(names)} has no command {rest[0]!r}"
        names.append(rest[0])
        command, rest = command.commands[rest[0]], rest[1:]
    given = [word for word in rest if word != "..."]
    if given:  # else the text only names the command
        command.make_context(" ".join(names), given)


@pytest.mark.parametrize("name", PAGES)
def test_commands_of_clray_are_those_it_has(name: str) -> None:
    for words in clray_commands(name):
        check_command(words)


def test_an_unknown_command_or_option_would_be_found() -> None:
    with pytest.raises(AssertionError):
        check_command(["swep", "FILE"])
    with pytest.raises(Exception, match="no-such-option"):
        check_command(["sweep", "FILE", "--no-such-option"])


def test_resources_on_the_pages_of_places_to_run_are_what_a_sweep_takes() -> None:
    seen = 0
    for name in PLACES_TO_RUN:
        for block in blocks(name):
            table = YAML(typ="safe", pure=True).load(block.body) if block.language == "yaml" else {}
            if set(table) == {"resources"}:
                Resources.model_validate(table["resources"])
                seen += 1
    assert seen


# --- The annotated files are complete ---------------------------------------------------------------------------------------------------


def fields(model: type[BaseModel], prefix: str = "") -> set[str]:
    """Dotted keys of a table and of the tables in it."""
    keys = set()
    for key, info in model.model_fields.items():
        inner = [part for part in (info.annotation, *get_args(info.annotation)) if isinstance(part, type) and issubclass(part, Table)]
        keys |= fields(inner[0], f"{prefix}{key}.") if inner else {prefix + key}
    return keys


def keys_of(data: dict[str, Any], prefix: str = "") -> set[str]:
    """Dotted keys of plain data."""
    nested = [keys_of(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key} for key, value in data.items()]
    return set().union(*nested)


def test_annotated_experiment_has_every_key_and_no_other() -> None:
    experiment = parse_experiment(Document("README.md", block_called("README.md", "digits-annotated.yaml")))
    parts = {"dataset", "model", "optimizer", *LISTS}
    valid = {key for key in fields(Experiment) if key.split(".")[0] not in parts} | set(LISTS)
    for part in parts - set(LISTS):
        valid |= fields(type(getattr(experiment, part)), f"{part}.")
    written = {"strategy" if key.startswith("strategy.") else key for key in keys_of(block_called("README.md", "digits-annotated.yaml"))}
    assert written == valid


def test_annotated_experiment_is_the_same_trial_as_the_short_one() -> None:
    annotated = parse_experiment(Document("README.md", block_called("README.md", "digits-annotated.yaml")))
    short = parse_experiment(read_yaml(REPOSITORY / "sweeps/digits.yaml"))
    assert annotated.trial_id() == short.trial_id()


def test_what_the_readme_calls_required_is_enough() -> None:
    named = [{"name": plugins.names(kind)[0]} for kind in ("datasets", "models", "optimizers")]
    least = {"sequence": {"n_tasks": 5}, **dict(zip(("dataset", "model", "optimizer"), named, strict=True)), "training": {"epochs": 1}}
    assert plan_run({"name": "least", **least, "logging": {"log_frequency": 1}}).trials


def test_annotated_sweep_has_every_key_and_is_valid() -> None:
    sweep = block_called("README.md", "every-axis.yaml")
    assert set(sweep) == set(Sweep.model_fields)
    assert set(sweep["random"]) == set(RandomSearch.model_fields)
    assert set(sweep["resources"]) == set(Resources.model_fields)
    text = next(block.body for block in blocks("README.md") if block.body.startswith("# every-axis.yaml"))
    assert all(kind in text for kind in DISTRIBUTIONS)
    plan = plan_sweep({**sweep, "experiment": block_called("README.md", "digits-annotated.yaml")})
    assert len(plan.trials) == 2 * 2 * 2 * 3


@pytest.mark.parametrize("kind", list(plugins.PACKAGES))
def test_readme_lists_every_plugin_with_the_keys_of_its_own(kind: str) -> None:
    listed: dict[str, set[str]] = {}
    table = ""
    for key, names, own_keys in re.findall(r"^\| (\w*) ?\| ([\w+, ]+) \| ([\w, ]*) ?\|$", page("README.md"), re.MULTILINE):
        table = key or table  # an empty cell repeats the one above
        if (PLUGIN_TABLES | {"selection": "selections"}).get(table) == kind:
            listed |= {name: set(own_keys.strip().split(", ")) - {""} for name in names.split(", ")}
    base = set(plugins.BASES[kind].model_fields)
    own = {name: set(plugins.options_class(kind, name).model_fields) - base for name in plugins.names(kind)}
    assert listed == own


def test_the_sweep_over_all_strategies_has_every_one_that_is_listed() -> None:
    plan = plan_sweep(REPOSITORY / "sweeps/strategies.yaml")
    assert {options.name for trial in plan.trials for options in trial.experiment.strategy} == set(plugins.names("strategies"))


@pytest.mark.parametrize("file", sorted(layout.SCHEMAS))
def test_columns_on_the_files_page_are_those_that_are_written(file: str) -> None:
    assert documented_columns(file) == list(zip(layout.SCHEMAS[file].names, layout.SCHEMAS[file].types, strict=True))


def test_columns_of_trials_parquet_are_those_that_are_written() -> None:
    schema = layout.TRIALS_SCHEMA
    assert documented_columns("trials.parquet") == list(zip(schema.names, schema.types, strict=True))


def test_columns_of_reproduction_parquet_are_those_that_are_written() -> None:
    schema = layout.REPRODUCTION_SCHEMA
    assert documented_columns("reproduction.parquet") == list(zip(schema.names, schema.types, strict=True))


def documented_columns(file: str) -> list[tuple[str, pa.DataType]]:
    """(column, type) of the table under a file's heading; columns with a placeholder in their name left out."""
    section = page("docs/files.md").split(f"### {file}\n")[1].split("\n#")[0]
    rows = re.findall(r"^\| (\w+) \| (\w+) \|", section, re.MULTILINE)
    return [(column, pa.type_for_alias(kind)) for column, kind in rows if column != "column"]
