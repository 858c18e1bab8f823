"""The files that others run us with: valid by the published schemas, and saying only what is so."""

import json
import re
import shutil
import subprocess
import sys
from functools import cache
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from api.http.problems import RETRY_AFTER_SECONDS, unavailable
from infra.settings import PREFIX, SECRETS, Settings
from streams.log.topics import Topics

ROOT = Path(__file__).parents[3]
SCHEMAS = ROOT / "tests" / "schemas"
K8S = ROOT / "infra" / "k8s"
KUBERNETES = "1.35.0"
ROLES = {"api": ["api"], **{name: ["worker", name] for name in ("compress", "progress", "projections")}}
PROBES = {"/healthz", "/readyz"}
CASSANDRA = {f"{PREFIX}CASSANDRA_USERNAME", f"{PREFIX}CASSANDRA_PASSWORD"}
KNOWN = {PREFIX + name.upper() for name in Settings.model_fields}


@cache
def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return found


@cache
def manifests() -> list[dict[str, Any]]:
    """Every object that the kustomization names."""
    files = kustomization()["resources"]
    return [entry for name in files for entry in yaml.safe_load_all((K8S / name).read_text())]


@cache
def kustomization() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((K8S / "kustomization.yaml").read_text())
    return found


def dockerfile() -> list[list[tuple[str, str]]]:
    """The stages of the Dockerfile, each a list of instructions."""
    text = (ROOT / "infra" / "docker" / "Dockerfile").read_text().replace("\\\n", " ")
    stages: list[list[tuple[str, str]]] = []
    for line in text.splitlines():
        if line and not line.startswith("#"):
            instruction, _, rest = line.partition(" ")
            if instruction == "FROM":
                stages.append([])
            stages[-1].append((instruction, rest))
    return stages


def named(kind: str) -> dict[str, Any]:
    return {entry["metadata"]["name"]: entry for entry in manifests() if entry["kind"] == kind}


def port_of(role: str) -> int:
    """Where a role answers probes in Kubernetes."""
    given = dict(line.split("=", 1) for line in kustomization()["configMapGenerator"][0]["literals"])
    default: int = Settings.model_fields["port"].default
    return default if role == "api" else int(given["SHRINKSTREAM_WORKER_PORT"])


def is_pinned(image: str) -> bool:
    """Whether an image is named by a whole version, not by one that moves."""
    return re.search(r":v?\d+\.\d+\.\d+[\w.-]*(?: |$)", image) is not None


# --- compose


def test_the_compose_file_is_valid() -> None:
    jsonschema.validate(compose(), json.loads((SCHEMAS / "compose-spec.json").read_text()))


def test_every_image_is_pinned() -> None:
    images = {service["image"] for service in compose()["services"].values()}
    images |= {rest for stage in dockerfile() for instruction, rest in stage if instruction == "FROM"}
    assert {image for image in images if not is_pinned(image)} == set()


def test_read_only_container_needs_no_writes() -> None:
    # https://github.com/docker/compose/issues/12031
    for name, service in compose()["services"].items():
        for config in service.get("configs", []):
            assert "file" in compose()["configs"][config["source"]], name


def test_gateway_answers_as_an_unavailable_api_does() -> None:
    problem = unavailable("no API process is ready")
    body = problem.response().body
    assert isinstance(body, bytes)
    config = (ROOT / "infra/docker/haproxy.cfg").read_text()
    assert f"application/problem+json string '{body.decode()}' hdr Retry-After {RETRY_AFTER_SECONDS}\n" in config


def test_logs_are_bounded_and_stops_have_time() -> None:
    for name, service in compose()["services"].items():
        assert service["logging"]["options"].keys() == {"max-size", "max-file"}, name
    for name in ("kafka", "cassandra"):
        assert compose()["services"][name]["stop_grace_period"] == "60s"


def test_every_role_can_be_scaled_and_waits_for_init() -> None:
    services = compose()["services"]
    assert [name for name, service in services.items() if "build" in service] == ["init"]
    for name, command in ROLES.items():
        service = services[name]
        assert service["command"] == command
        assert "container_name" not in service
        assert "ports" not in service, "two of them can't have the same port of the host"
        assert service["depends_on"]["init"]["condition"] == "service_completed_successfully"
    assert services["gateway"]["ports"], "somebody must be reachable"


def test_long_running_services_have_healthcheck_and_limits() -> None:
    for name, service in compose()["services"].items():
        if name != "init":
            assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL"), name
        if name in ROLES:
            port = 8080 if name == "api" else service["environment"]["SHRINKSTREAM_WORKER_PORT"]
            assert f"http://127.0.0.1:{port}/readyz" in service["healthcheck"]["test"][-1]
        if service["image"].startswith("shrinkstream"):
            assert service["cap_drop"] == ["ALL"], name
            assert service["read_only"] is True, name


def test_what_is_written_is_kept_in_volumes() -> None:
    for name, path in (("kafka", "/var/lib/kafka/data"), ("cassandra", "/var/lib/cassandra"), ("api", "/data")):
        volumes = dict(volume.split(":") for volume in compose()["services"][name]["volumes"])
        assert path in volumes.values()
        assert set(volumes) <= set(compose()["volumes"])
    assert compose()["services"]["kafka"]["environment"]["KAFKA_LOG_DIRS"] == "/var/lib/kafka/data"


def test_every_file_that_a_service_is_given_is_there() -> None:
    volumes = [volume for service in compose()["services"].values() for volume in service.get("volumes", [])]
    files = [volume.split(":")[0] for volume in volumes if volume.startswith(".")]
    assert files
    assert [file for file in files if not (ROOT / file).is_file()] == []


def test_prometheus_scrapes_every_role_on_internal_ports() -> None:
    asked = {
        name: place["port"]
        for job in yaml.safe_load((ROOT / "infra/monitoring/prometheus.yml").read_text())["scrape_configs"]
        for place in job["dns_sd_configs"]
        for name in place["names"]
    }
    services = compose()["services"]
    workers = {name: int(services[name]["environment"]["SHRINKSTREAM_WORKER_PORT"]) for name in ROLES if name != "api"}
    assert asked == {"api": Settings.model_fields["port"].default, **workers}
    assert services["compress"]["environment"]["SHRINKSTREAM_WORKER_HOST"] == "0.0.0.0"
    assert "deny deny_status 404 if { path,url_dec -m beg /metrics }" in (ROOT / "infra/docker/haproxy.cfg").read_text()
    assert {name for name, service in services.items() if service.get("profiles")} == {"prometheus", "grafana"}
    for name in ("prometheus", "grafana", "gateway"):
        assert all(port.startswith("127.0.0.1:") for port in services[name]["ports"])


@pytest.mark.parametrize("role", [*ROLES, "init"])
def test_service_has_only_the_secrets_of_its_role(role: str) -> None:
    given = compose()["services"][role]["environment"]
    secrets = {PREFIX + name.upper() for name in SECRETS.get(role, ())}
    for name in {*(PREFIX + name.upper() for role_secrets in SECRETS.values() for name in role_secrets)} - CASSANDRA:
        # Named by each: what it is not given is blank, although the file .env may have it.
        assert given[name] == (f"${{{name}:-}}" if name in secrets else "")


def test_every_setting_that_is_given_exists() -> None:
    text = "".join(
        path.read_text() for path in (ROOT / "docker-compose.yml", *K8S.iterdir(), *(ROOT / "infra/docker").iterdir())
    )
    given = set(re.findall(rf"{PREFIX}[A-Z_]+", text))
    assert given
    assert given <= KNOWN


# --- the image


def test_image_runs_as_unprivileged_user() -> None:
    last = dict(dockerfile()[-1])
    assert last["USER"] not in ("root", "0")
    assert last["ENTRYPOINT"] == '["shrinkstream"]'


def test_image_is_built_from_hashes_without_cache() -> None:
    installs = [rest for stage in dockerfile() for instruction, rest in stage if "pip install" in rest]
    assert installs
    for command in installs:
        assert "--no-cache-dir" in command
        assert "--require-hashes" in command or command.endswith("--no-deps .")


@pytest.mark.slow
def test_steps_of_image_build_working_program(tmp_path: Path) -> None:
    """The build stage's own commands in an empty folder, with only the files that it copies."""
    app, venv = tmp_path / "app", tmp_path / "venv"
    app.mkdir()
    for instruction, rest in dockerfile()[0]:
        if instruction == "COPY":
            *sources, target = rest.split()
            for source in sources:
                if (ROOT / source).is_dir():  # of a folder, its content is copied
                    ignored = shutil.ignore_patterns("__pycache__")
                    shutil.copytree(ROOT / source, app / target, dirs_exist_ok=True, ignore=ignored)
                else:
                    (app / target).mkdir(parents=True, exist_ok=True)
                    shutil.copy(ROOT / source, app / target)
        elif instruction == "RUN":
            command = rest.replace("/venv", str(venv)).replace("python -m", f"{sys.executable} -m", 1)
            # Nearly nothing of what is installed is imported below: to compile all of it is most of the work.
            command = command.replace("--no-cache-dir", "--no-compile --disable-pip-version-check --quiet")
            subprocess.run(["/bin/sh", "-ec", command], cwd=app, check=True, timeout=700)
    for arguments in (["--help"], ["worker", "--help"], ["settings"]):
        ran = subprocess.run(
            [venv / "bin" / "shrinkstream", *arguments],
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin", "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
    for app_name in ("compress", "progress", "projections"):
        imported = subprocess.run(
            [venv / "bin" / "python", "-c", f"import streams.{app_name}; streams.{app_name}.app; import api.app"],
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert imported.returncode == 0, imported.stderr


def test_what_the_image_copies_is_not_ignored() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        source.split("/")[0]
        for instruction, rest in dockerfile()[0]
        if instruction == "COPY"
        for source in rest.split()[:-1]
    }
    assert copied == kept


# --- Kubernetes


@pytest.mark.parametrize("entry", manifests(), ids=lambda entry: f"{entry['kind']}-{entry['metadata']['name']}")
def test_every_manifest_is_valid(entry: dict[str, Any]) -> None:
    if entry["kind"] == "ScaledObject":
        definition = yaml.safe_load((SCHEMAS / "keda-scaledobjects.yaml").read_text())
        (version,) = definition["spec"]["versions"]
        assert entry["apiVersion"] == f"{definition['spec']['group']}/{version['name']}"
        jsonschema.validate(entry, strict(version["schema"]["openAPIV3Schema"]))
    else:
        kubernetes_validate.validate(entry, KUBERNETES, strict=True)


def strict(schema: Any) -> Any:
    """The schema, refusing members that it doesn't know: the API server would drop them in silence."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(part) for key, part in schema.items()}
    known = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    # An object's metadata is described elsewhere.
    return {"additionalProperties": False, **closed} if known else closed


def test_kustomization_lists_exactly_its_files() -> None:
    assert {*kustomization()["resources"], "kustomization.yaml"} == {path.name for path in K8S.iterdir()}


def test_every_role_is_deployed_probed_bounded_and_without_privileges() -> None:
    deployments = named("Deployment")
    assert {
        name: entry["spec"]["template"]["spec"]["containers"][0]["args"] for name, entry in deployments.items()
    } == (ROLES)
    for name, entry in deployments.items():
        pod = entry["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["enableServiceLinks"] is False, "a service named shrinkstream would give settings"
        for one in (container, *pod.get("initContainers", [])):
            assert one["securityContext"]["readOnlyRootFilesystem"] is True
            assert one["securityContext"]["capabilities"]["drop"] == ["ALL"]
            assert one["resources"]["requests"].keys() == {"cpu", "memory"}
            assert one["resources"]["limits"]["memory"]
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys(), name
        (port,) = container["ports"]
        said = entry["spec"]["template"]["metadata"]["annotations"]
        assert said["prometheus.io/port"] == str(port["containerPort"]) == str(port_of(name))
        assert {probe["httpGet"]["path"] for key, probe in container.items() if key.endswith("Probe")} <= PROBES
        assert pod["terminationGracePeriodSeconds"] > 15, "SIGTERM drains and commits within 10 s"
        assert entry["spec"]["selector"]["matchLabels"] == entry["spec"]["template"]["metadata"]["labels"]
        budget = named("PodDisruptionBudget")[name]["spec"]
        assert budget["selector"]["matchLabels"] == entry["spec"]["selector"]["matchLabels"]


def test_every_object_can_be_applied_again() -> None:
    # The template of a Job is immutable: a second `kubectl apply` with another image or setting would fail.
    assert named("Job") == {}
    (init,) = named("Deployment")["projections"]["spec"]["template"]["spec"]["initContainers"]
    assert init["args"] == ["init"]


@pytest.mark.parametrize("role", [*ROLES, "init"])
def test_container_has_only_the_secrets_of_its_role(role: str) -> None:
    pods = [entry["spec"]["template"]["spec"] for entry in named("Deployment").values()]
    (container,) = (
        one for pod in pods for one in (*pod["containers"], *pod.get("initContainers", [])) if one["name"] == role
    )
    assert container["envFrom"] == [{"configMapRef": {"name": "shrinkstream"}}]
    keys = {variable["name"] for variable in container["env"] if "valueFrom" in variable}
    ours = {name for name in keys if name.startswith(PREFIX)}
    wanted = {PREFIX + name.upper() for name in SECRETS[role]} if role in SECRETS else CASSANDRA
    assert ours == wanted | {f"{PREFIX}KAFKA_SASL_USERNAME", f"{PREFIX}KAFKA_SASL_PASSWORD"}
    assert bool(keys - ours) == (role in ("api", "compress", "projections")), "keys of the bucket"


def test_network_policies_keep_pods_from_private_networks() -> None:
    policies = named("NetworkPolicy")
    reached = {
        name: {port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]}
        for name, policy in policies.items()
    }
    assert reached == {"shrinkstream": {53, 9092}, "cassandra": {9042}, "internet": {80, 443}}
    (rule,) = policies["internet"]["spec"]["egress"]
    closed = [ip_network(block) for to in rule["to"] for block in to["ipBlock"]["except"]]
    for address in (
        "10.1.2.3",
        "172.20.0.1",
        "192.168.0.1",
        "169.254.169.254",
        "127.0.0.1",
        "::1",
        "fd00::1",
        "fe80::1",
    ):
        assert any(ip_address(address) in network for network in closed), address
    roles = {
        name: policy["spec"]["podSelector"]["matchExpressions"][1]["values"]
        for name, policy in policies.items()
        if name != "shrinkstream"
    }
    assert roles == {"cassandra": ["api", "projections"], "internet": ["api", "compress", "projections"]}
    for entry in named("Deployment").values():
        labels = entry["spec"]["template"]["metadata"]["labels"]
        assert labels["app.kubernetes.io/name"] == "shrinkstream"
        assert labels["app.kubernetes.io/component"] == entry["metadata"]["name"]


def test_compress_scales_by_its_lag_up_to_partitions() -> None:
    settings = dict(line.split("=", 1) for line in kustomization()["configMapGenerator"][0]["literals"])
    topics = Topics(settings.get("SHRINKSTREAM_TOPIC_PREFIX", "shrinkstream"))
    scaled = named("ScaledObject")["compress"]["spec"]
    (trigger,) = scaled["triggers"]
    assert trigger["metadata"]["consumerGroup"] == topics.group("compress")
    assert trigger["metadata"]["topic"] == topics.image_requests
    assert trigger["metadata"]["bootstrapServersFromEnv"] in settings
    assert scaled["maxReplicaCount"] <= int(settings["SHRINKSTREAM_PARTITIONS"])
    assert "replicas" not in named("Deployment")[scaled["scaleTargetRef"]["name"]]["spec"]
