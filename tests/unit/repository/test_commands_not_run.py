"""Commands of the documents that need docker, kubectl or Kafka's own tools name what there is."""

import re

import pytest
import yaml

from streams.log.topics import Topics
from tests.support import markdown
from tests.support.markdown import ROOT

DEPLOYMENT = markdown.read("docs/deployment.md")
K8S = "".join(path.read_text() for path in (ROOT / "infra" / "k8s").iterdir())
COMPOSE = (ROOT / "docker-compose.yml").read_text()


def commands(needs: str) -> str:
    """All blocks that need this, of all documents."""
    blocks = [block for path in markdown.documents() for block in markdown.read(path).of_language("sh")]
    found = "".join(block.text for block in blocks if block.needs == needs)
    assert found
    return found


def test_compose_has_every_service_that_is_scaled_or_run() -> None:
    services = set(yaml.safe_load(COMPOSE)["services"])
    text = "".join(path.read_text() for path in markdown.documents())
    named = set(re.findall(r"--scale (\w+)=", text)) | set(re.findall(r"docker compose run --rm (\w+)", text))
    assert {"compress", "api", "init"} <= named
    assert named <= services


@pytest.mark.parametrize("needs", ["docker", "kubectl"])
def test_every_file_that_is_named_exists(needs: str) -> None:
    named = re.findall(r" (?:-f|-k) (\S+)", commands(needs))
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_secrets_are_those_that_the_manifests_refer_to() -> None:
    made = set(re.findall(r"create secret generic (\S+)", commands("kubectl")))
    wanted = set(re.findall(r"secretKeyRef: \{name: ([\w-]+)", K8S)) | set(re.findall(r"secretName: (\S+)", K8S))
    assert made == wanted


def test_the_image_is_the_one_that_the_manifests_run() -> None:
    (image,) = set(re.findall(r"registry\.example/\S+", commands("docker")))
    (entry,) = yaml.safe_load((ROOT / "infra" / "k8s" / "kustomization.yaml").read_text())["images"]
    assert image == f"{entry['newName']}:{entry['newTag']}"


def test_kafka_is_asked_about_our_groups_and_topics() -> None:
    topics = Topics()
    asked = commands("kafka")
    groups = {topics.group(app) for app in ("compress", "progress", "projections")}
    assert set(re.findall(r"--group (\S+)", asked)) <= groups
    assert set(re.findall(r"--topic (\S+)", asked)) <= set(topics.configs())
