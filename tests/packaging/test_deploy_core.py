"""What is handed out for clusters is well-formed, asks for little, and says nothing that the core would refuse."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.config import load_core_config
from pipelines.runners.engine import Engine, RunnerKind

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "core"
FILES = ("core", "flink")


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / "kubernetes" / f"{name}.yaml").read_text()))


def pods(name: str) -> list[dict[str, Any]]:
    return [found["spec"]["template"]["spec"] for found in documents(name) if found["kind"] in ("Deployment", "StatefulSet")]


def ours(name: str) -> list[dict[str, Any]]:
    containers = [container for pod in pods(name) for container in pod["containers"]]
    for found in documents(name):
        if found["kind"] == "FlinkDeployment":
            containers += found["spec"]["taskManager"]["podTemplate"]["spec"]["containers"][1:]
    return [container for container in containers if "catchment" in container["image"]]


@pytest.mark.parametrize("name", FILES)
def test_our_containers_may_do_very_little(name: str) -> None:
    assert ours(name)
    for container in ours(name):
        rights = container["securityContext"]
        assert rights["allowPrivilegeEscalation"] is False
        assert rights["readOnlyRootFilesystem"] is True
        assert rights["capabilities"] == {"drop": ["ALL"]}
    assert all(pod["automountServiceAccountToken"] is False for pod in pods(name))


@pytest.mark.parametrize("name", FILES)
def test_every_image_has_a_version(name: str) -> None:
    text = (FOLDER / "kubernetes" / f"{name}.yaml").read_text()
    images = [line.split("image:")[1].strip() for line in text.splitlines() if "image:" in line]
    assert images
    assert all(":" in image and not image.endswith(":latest") for image in images)


@pytest.mark.parametrize("ordinal", [0, 1])
def test_each_bridge_has_its_own_id_certificate_and_share(tmp_path: Path, ordinal: int) -> None:
    (found,) = [one for one in documents("core") if one["kind"] == "ConfigMap"]
    path = tmp_path / "bridge.toml"
    path.write_text(found["data"]["bridge.toml"].replace("@ORDINAL@", str(ordinal)))
    config = load_core_config(path)
    (replicas,) = [one["spec"]["replicas"] for one in documents("core") if one["kind"] == "StatefulSet"]
    assert (config.bridge.id, config.bridge.partition, config.bridge.partitions) == (f"bridge-{ordinal}", ordinal, replicas)
    assert config.broker.tls is not None
    assert config.broker.tls.cert.endswith(f"bridge-{ordinal}.pem")
    assert config.remote is not None


def test_the_run_loop_on_flink_is_given_options_that_it_takes(tmp_path: Path) -> None:
    (container,) = [one for one in ours("flink") if one["name"] == "run"]
    arguments = container["args"]
    options = list(itertools.dropwhile(lambda word: word != "--", arguments))[1:]
    engine = Engine(arguments[arguments.index("--runner") + 1], tuple(options))
    assert engine.kind is RunnerKind.PORTABLE
    assert engine.beam_options() == options
    (found,) = [one for one in documents("core") if one["kind"] == "ConfigMap"]
    (tmp_path / "run.toml").write_text(found["data"]["run.toml"])
    assert load_core_config(tmp_path / "run.toml").remote is not None


def test_the_job_server_is_of_the_version_that_is_locked() -> None:
    lock = (FOLDER.parents[1] / "requirements.lock").read_text()
    (version,) = {line.split("==")[1].split()[0] for line in lock.splitlines() if line.startswith("apache-beam==")}
    images = [container["image"] for pod in pods("flink") for container in pod["containers"]]
    assert any(image.endswith(f"_job_server:{version}") for image in images)


def test_the_configuration_for_dataflow_is_one_that_the_core_takes() -> None:
    config = load_core_config(FOLDER / "dataflow" / "run.toml")
    engine = Engine(config.run.runner, config.run.beam_options, config.run.dask_workers)
    assert engine.kind is RunnerKind.DATAFLOW
    assert config.remote is not None


def test_the_image_is_made_of_what_a_checkout_has() -> None:
    text = (FOLDER / "Containerfile").read_text()
    copied = [line.split()[1] for line in text.splitlines() if line.startswith("COPY")]
    assert copied == ["requirements.lock", "dist/"]
    assert "--require-hashes" in text
    assert "\nUSER 10001\n" in text
