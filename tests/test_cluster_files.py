"""The cluster files and deployment pages hold what they promise, checked offline with Ray's own validation and command line.

Ray's validation accepts much that fails only on a machine that costs money: unknown keys in `provider` and `node_config`, mounts
that do not exist, limits that contradict each other. The tests after the first two are for those.
"""

import copy
import itertools
import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import click
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.scripts.scripts import cli as ray_cli

REPO = Path(__file__).resolve().parents[1]
CLUSTER_FILES = ("cluster.yaml", "docs/cluster-gcp.yaml")
PAGES = ("cloud.md", "kuberay.md", "one-machine.md", "ray-cluster.md", "slurm.md")
SCHEMA = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
START_LISTS = ("head_start_ray_commands", "worker_start_ray_commands")


@pytest.fixture(params=CLUSTER_FILES)
def name(request):
    return request.param


@pytest.fixture
def config(name, monkeypatch):
    monkeypatch.chdir(REPO)  # `ray up` runs here, and resolves file_mounts from here
    return yaml.safe_load((REPO / name).read_text())


@pytest.fixture
def head(config):
    return config["available_node_types"][config["head_node_type"]]


@pytest.fixture
def workers(config):
    return {name: spec for name, spec in config["available_node_types"].items() if name != config["head_node_type"]}


def pinned_ray_version() -> str:
    match = re.search(r"^ray==(\S+)$", (REPO / "constraints.txt").read_text(), re.MULTILINE)
    assert match, "constraints.txt has no line ray==<version>"
    return match[1]


def blocks(page: str, language: str) -> list[str]:
    """The fenced code blocks of one language in docs/<page>, dedented."""
    text = (REPO / "docs" / page).read_text()
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", body, flags=re.MULTILINE) for indent, body in found]


def starts(config: dict, commands: str) -> list[list[str]]:
    """The words of every `ray start` among the commands, from `ray` on."""
    lines = [line for line in config[commands] if "ray start" in line]
    return [shlex.split(line[line.index("ray start") :]) for line in lines]


# --- Ray's own reading of the files ------------------------------------------------------------------------------------------------


def test_the_launcher_accepts_the_file(config):
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    assert prepared["available_node_types"][config["head_node_type"]]["max_workers"] == 0


def test_the_autoscaler_finds_the_right_image_for_every_node_type(config, workers):
    # The head prepares the file a second time, and reads docker settings in its own way: head_image without image is a KeyError.
    on_the_head = AutoscalingConfig(prepare_config(copy.deepcopy(config)), skip_content_hash=True)
    assert on_the_head.get_docker_config(config["head_node_type"])["image"].endswith("-py311-cpu")
    for worker in workers:
        assert on_the_head.get_docker_config(worker)["image"].endswith("-py311-gpu")


def test_setup_runs_once_although_the_file_is_prepared_twice(config):
    twice = prepare_config(prepare_config(copy.deepcopy(config)))
    for commands in ("head_setup_commands", "worker_setup_commands"):
        assert twice[commands] == config[commands]
        assert twice[commands]


# --- What Ray does not check ---------------------------------------------------------------------------------------------------------


def test_every_key_is_known_to_the_launcher(config):
    properties = SCHEMA["properties"]
    node_type = properties["available_node_types"]["patternProperties"][".*"]["properties"]
    assert set(config) <= set(properties)
    assert set(config["provider"]) <= set(properties["provider"]["properties"])
    assert set(config["docker"]) <= set(properties["docker"]["properties"])
    assert set(config["auth"]) <= set(properties["auth"]["properties"])
    for spec in config["available_node_types"].values():
        assert set(spec) <= set(node_type)


def test_aws_node_configs_are_requests_that_ec2_would_parse():
    botocore = pytest.importorskip("botocore.session")
    validate = pytest.importorskip("botocore.validate")
    shape = botocore.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for name, spec in yaml.safe_load((REPO / "cluster.yaml").read_text())["available_node_types"].items():
        report = validate.ParamValidator().validate({**spec["node_config"], "MinCount": 1, "MaxCount": 1}, shape)
        assert not report.has_errors(), f"{name}: {report.generate_report()}"


def test_gcp_disks_and_account_are_those_of_the_zone_and_project():
    config = yaml.safe_load((REPO / "docs/cluster-gcp.yaml").read_text())
    provider = config["provider"]
    assert provider["availability_zone"].startswith(provider["region"] + "-")
    for spec in config["available_node_types"].values():
        for disk in spec["node_config"]["disks"]:
            assert disk["initializeParams"]["diskType"].split("/")[:2] == ["zones", provider["availability_zone"]]
        for account in spec["node_config"].get("serviceAccounts", []):
            assert account["email"].endswith(f"@{provider['project_id']}.iam.gserviceaccount.com")


def test_limits_do_not_contradict_each_other(config):
    for spec in config["available_node_types"].values():
        assert 0 <= spec.get("min_workers", 0) <= spec["max_workers"] <= config["max_workers"]
    assert config["max_workers"] <= sum(spec["max_workers"] for spec in config["available_node_types"].values())


def test_gpu_workers_start_at_zero_and_leave_when_idle(config, workers):
    assert workers
    for spec in workers.values():
        assert spec["resources"]["GPU"] >= 1
        assert spec.get("min_workers", 0) == 0 < spec["max_workers"]
    assert 0 < config["idle_timeout_minutes"] <= 30


def test_workers_are_spot_machines_and_the_head_is_not(config, head, workers):
    def is_spot(node_config: dict) -> bool:
        if config["provider"]["type"] == "aws":
            return node_config.get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        return node_config.get("scheduling", {}).get("provisioningModel") == "SPOT"

    assert all(is_spot(spec["node_config"]) for spec in workers.values())
    assert not is_spot(head["node_config"])


def test_workers_have_credentials_for_the_bucket(config, workers):
    key = {"aws": "IamInstanceProfile", "gcp": "serviceAccounts"}[config["provider"]["type"]]
    assert all(spec["node_config"].get(key) for spec in workers.values())


def test_head_advertises_no_cpu_and_no_gpu(config, head):
    assert head["resources"] == {"CPU": 0}
    assert head["max_workers"] == 0
    (start,) = starts(config, "head_start_ray_commands")
    assert "--num-cpus=0" in start


def test_dashboard_is_bound_to_loopback(config):
    (start,) = starts(config, "head_start_ray_commands")
    assert [word for word in start if word.startswith("--dashboard-host")] == ["--dashboard-host=127.0.0.1"]


def test_no_address_is_open_to_the_world(name):
    text = (REPO / name).read_text()
    assert "0.0.0.0" not in text
    assert "::/0" not in text


def test_every_node_starts_ray_with_token_authentication(config):
    for commands in START_LISTS:
        lines = [line for line in config[commands] if "ray start" in line]
        assert lines
        for line in lines:
            assert line.index("export RAY_AUTH_MODE=token;") < line.index("ray start")
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]


def test_the_token_reaches_the_place_where_ray_looks_for_it(config):
    home_in_the_image = "/home/ray"
    assert config["file_mounts"][f"{home_in_the_image}/.ray/auth_token"] == "~/.ray/auth_token"


def test_images_hold_the_pinned_ray(name):
    images = re.findall(r"rayproject/ray:(\S+)", (REPO / name).read_text())
    assert len(images) == 2
    assert {image.split("-")[0] for image in images} == {pinned_ray_version()}


def test_mounted_files_of_the_repository_exist(config):
    sources = [Path(source) for source in config["file_mounts"].values() if not source.startswith("~")]
    assert sources
    for source in sources:
        assert not source.is_absolute(), f"{source} exists on one machine only"
        assert source.exists(), source
        assert (REPO / source).resolve().is_relative_to(REPO), source


def test_setup_installs_extras_and_constraints_that_exist(config):
    extras = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for commands in ("head_setup_commands", "worker_setup_commands"):
        for line in config[commands]:
            folder = line.split("&&")[0].removeprefix("cd ").strip()
            assert config["file_mounts"][folder] == "."
            words = shlex.split(line)
            assert (REPO / words[words.index("-c") + 1]).exists()
            (package,) = [word for word in words if word.startswith(".[")]
            assert set(package[2:-1].split(",")) <= set(extras)
    assert any(".[cuda," in line for line in config["worker_setup_commands"])


# --- The pages --------------------------------------------------------------------------------------------------------------------------


def commands_of(script: str) -> list[list[str]]:
    """The words of every call of `ray`, up to the next shell operator; continuation lines joined, variables before it dropped."""
    found = []
    for line in script.replace("\\\n", " ").splitlines():
        call = re.sub(r"^\s*([A-Z_]+=\S+ |srun .*? (?=ray ))*", "", line)
        if call.startswith("ray "):
            words = shlex.shlex(call, posix=True, punctuation_chars=True)
            words.whitespace_split = True
            found.append(list(itertools.takewhile(lambda word: not set(word) <= set("();<>|&"), words)))
    return found


def unknown_parts(words: list[str]) -> list[str]:
    """The options (up to `--`) and subcommands that the pinned Ray does not have."""
    command: click.Command = ray_cli
    rest = words[1:]
    while isinstance(command, click.Group):
        if rest[0] not in command.commands:
            return [rest[0]]
        command, rest = command.commands[rest[0]], rest[1:]
    known = {option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]}
    if command.name == "symmetric_run":  # passes what it does not know itself on to `ray start`
        known |= {option for parameter in ray_cli.commands["start"].params for option in parameter.opts}
        known -= {"--head", "--node-ip-address", "--port", "--block"}
    options = [word.split("=")[0] for word in rest[: rest.index("--") if "--" in rest else None] if word.startswith("-")]
    return [option for option in options if option not in known]


@pytest.mark.parametrize("page", PAGES)
def test_shell_blocks_parse_and_call_ray_as_it_is(page):
    scripts = blocks(page, "bash")
    assert scripts
    for script in scripts:
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
        for words in commands_of(script):
            assert not unknown_parts(words), f"ray {pinned_ray_version()} does not know {unknown_parts(words)} in {shlex.join(words)}"


@pytest.mark.parametrize("page", PAGES)
def test_yaml_blocks_parse(page):
    for block in blocks(page, "yaml"):
        assert yaml.safe_load(block)


def test_sbatch_script_runs_one_ray_a_node_and_the_sweep_once():
    (script,) = [block for block in blocks("slurm.md", "bash") if block.startswith("#!")]
    assert "#SBATCH --exclusive" in script
    assert "#SBATCH --ntasks-per-node=1" in script
    assert script.index("export RAY_AUTH_MODE=token") < script.index("ray symmetric-run")
    (words,) = [words for words in commands_of(script) if words[1] == "symmetric-run"]
    assert {"--address", "--min-nodes"} <= set(words)
    assert words[words.index("--") + 1 :][:2] == ["clray", "sweep"]


def test_kuberay_job_scales_from_zero_with_the_pinned_ray_and_a_token():
    (job,) = [block for block in map(yaml.safe_load, blocks("kuberay.md", "yaml")) if block.get("kind") == "RayJob"]
    cluster = job["spec"]["rayClusterSpec"]
    assert job["apiVersion"] == "ray.io/v1"
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    assert cluster["rayVersion"] == pinned_ray_version()
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] == group["replicas"] == 0 < group["maxReplicas"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    containers = [container for group in groups for container in group["template"]["spec"]["containers"]]
    assert {container["image"].rsplit("-", 1)[1] for container in containers} == {pinned_ray_version()}


def test_kuberay_image_is_built_on_the_pinned_ray():
    (dockerfile,) = blocks("kuberay.md", "dockerfile")
    assert dockerfile.startswith(f"FROM rayproject/ray:{pinned_ray_version()}-py311-gpu\n")
