"""The Chromium of the tests: that of ``TEST_CHROMIUM``, of the ``PATH``, or else the one that npm brings."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

UNPACKED = Path(sys.prefix) / "npm" / "chromium"  # by `make check`
OF_UNPACKED = {"LD_LIBRARY_PATH": str(UNPACKED / "al2023/lib"), "FONTCONFIG_FILE": str(UNPACKED / "fonts/fonts.conf")}


def installed() -> str | None:
    return os.environ.get("TEST_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def launched() -> Iterator[Browser]:
    executable = installed()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable or UNPACKED / "chromium",
            env=None if executable else {**os.environ, **OF_UNPACKED},
        )
        yield browser
        browser.close()
