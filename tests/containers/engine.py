"""The container engine: whether there is one, and its commands."""

import json
import subprocess
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
SECONDS = 900  # an image is built in half of it on a busy machine


class EngineError(Exception):
    """A command of the engine failed; the message has its last lines."""


def missing_engine() -> str | None:
    """Why containers can't be run here, or None."""
    try:
        result = subprocess.run(
            ["docker", "info", "--format", "{{.ServerVersion}}"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        compose = subprocess.run(["docker", "compose", "version"], capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"no container engine: {error}"
    if result.returncode != 0 or not result.stdout.strip():
        return f"no container engine answers: {result.stderr.strip()[-200:]}"
    return None if compose.returncode == 0 else "the engine's client has no `compose`"


def docker(*arguments: str, stdin: IO[bytes] | None = None, env: dict[str, str] | None = None) -> str:
    """The output of ``docker …``, run at the repository's root. Raises EngineError."""
    result = subprocess.run(
        ["docker", *arguments],
        stdin=stdin or subprocess.DEVNULL,
        capture_output=True,
        timeout=SECONDS,
        check=False,
        cwd=ROOT,
        env=env,
    )
    if result.returncode != 0:
        said = (result.stderr + result.stdout).decode(errors="replace").strip()
        raise EngineError(f"docker {' '.join(arguments[:3])}: {said[-1500:]}")
    return result.stdout.decode()


def has_image(name: str) -> bool:
    return bool(docker("image", "ls", "--quiet", name).strip())


def inspect(container: str) -> dict[str, Any]:
    (found,) = json.loads(docker("inspect", container))
    return dict(found)
