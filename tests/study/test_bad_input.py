"""Wrong study files are told with their line and key, before anything runs."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from clray.cli import main
from clray.errors import ConfigError
from clray.trials.plan import plan_run
from tests.study.tiny import tiny_study


def written(folder: Path, data: dict[str, Any]) -> Path:
    text = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.dump(data, text)
    (folder / "study.yaml").write_text(text.getvalue())
    return folder / "study.yaml"


def memory(**changes: Any) -> dict[str, Any]:
    return {"methods": ["random"], "fractions": [0.1, 1], "num_samples": 2, **changes}


UNEQUAL = {"name": "digits", "train_per_class": "all"}
CASES: list[tuple[dict[str, Any], str, list[str]]] = [
    ({"memory": memory(fractions=[0.0, 0.1])}, "- 0.0", ["memory.fractions.0", "greater than 0"]),
    ({"memory": memory(fractions=[0.1, 1.5])}, "- 1.5", ["memory.fractions.1", "less than or equal to 1"]),
    ({"memory": memory(fractions=[0.1, 0.1])}, "fractions:", ["memory.fractions", "rising"]),
    ({"memory": memory(methods=["rnadom"])}, "- rnadom", ["memory.methods.0.name", "did you mean 'random'"]),
    (
        {"memory": memory(methods=[{"name": "kmeans", "num_centroids": 41}])},
        "num_centroids: 41",
        ["num_centroids", "41", "40 training samples"],
    ),
    ({"memory": memory(methods=[{"name": "kmeans", "centroids": 4}])}, "- centroids: 4", ["centroids", "unknown key"]),
    ({"memory": memory(methods=["random", "random"])}, "memory:", ["random comes twice", "label"]),
    (
        {"dataset": UNEQUAL, "memory": memory(methods=["class_balanced"], fractions=[0.5, 0.999])},
        "- 0.999",
        ["memory.fractions.1", "balanced set", "class_balanced", "training samples"],
    ),
    ({"memory": memory(num_samples=0)}, "num_samples: 0", ["memory.num_samples"]),
    ({"similarity": ["cosine", "angle"]}, "- angle", ["similarity.1", "cosine"]),
    ({"strategy": {"name": "ewc"}}, "strategy:", ["strategy", "leave strategy out"]),
    ({"baselines": ["expert"]}, "baselines:", ["baselines", "has none"]),
    ({"sequence": {"n_tasks": 1, "classes_per_task": 2}}, "n_tasks: 1", ["sequence.n_tasks", "at least 2"]),
    ({"sequence": {"n_tasks": 3, "policy": "reuse"}}, "policy: reuse", ["sequence.policy", "disjoint"]),
    ({"downstream": {"methods": ["gss"]}, "memory": memory()}, "methods:", ["downstream.methods", "gss", "memory.methods"]),
    ({"downstream": {"fractions": [0.7]}, "memory": memory()}, "fractions:", ["downstream.fractions", "0.7"]),
    ({"downstream": {"methods": ["random", "random"]}, "memory": memory()}, "methods:", ["downstream.methods", "lists random twice"]),
    ({"downstream": {"methods": []}, "memory": memory()}, "methods:", ["downstream.methods", "at least 1"]),
    # In another order than that of memory.fractions the accuracies would stand beside the wrong fractions.
    ({"downstream": {"fractions": [1, 0.1]}, "memory": memory()}, "fractions:", ["downstream.fractions", "rising"]),
    ({"downstream": {"fractions": []}, "memory": memory()}, "fractions:", ["downstream.fractions", "at least 1"]),
    ({"similarity": ["mse", "mse"]}, "similarity:", ["similarity", "lists mse twice"]),
    ({"ideal_models": "nowhere"}, "ideal_models: nowhere", ["ideal_models", "no trial of a study"]),
    ({"study": "something"}, "study: something", ["study", "gradient_similarity"]),
]


@pytest.mark.parametrize(("changes", "at", "words"), CASES)
def test_one_message_names_line_key_and_what_is_valid(tmp_path: Path, changes: dict[str, Any], at: str, words: list[str]) -> None:
    file = written(tmp_path, tiny_study(**changes))
    lines = [number for number, line in enumerate(file.read_text().splitlines(), 1) if line.strip().startswith(at)]
    with pytest.raises(ConfigError) as caught:
        plan_run(file)
    message = str(caught.value)
    assert "\n" not in message
    assert any(message.startswith(f"{file}:{line}: ") for line in lines), message
    for word in words:
        assert word in message


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    file = written(tmp_path, tiny_study(memory=memory(methods=["random", "herdin"], fractions=[0.1, 1.5], num_samples=0)))
    with pytest.raises(ConfigError) as caught:
        plan_run(file)
    told = str(caught.value).splitlines()
    assert [line.split(": ")[1] for line in told] == ["memory.methods.1.name", "memory.fractions.1", "memory.num_samples"]


def test_the_command_ends_with_code_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path, tiny_study(memory=memory(fractions=[2])))
    monkeypatch.setattr("sys.argv", ["clray", "run", str(file), "--output", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "memory.fractions.0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
