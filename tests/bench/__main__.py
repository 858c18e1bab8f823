"""``python -m tests.bench [NAME …] [--json FILE] [--against FILE]``: a table, printed row by row.

Bounded in time, on loopback only. Without names all of them run; ``animations``, ``formats`` and ``hostile`` only when
named, as they print tables of their own. ``--json`` keeps the figures, also those of an interrupted run; ``--against``
compares them with another run's. Steps go to standard error.
"""

import argparse
import os
import time
from pathlib import Path

from tests.bench import animations, formats, hostile, images, replay, scale, sizes, uploads, webhooks
from tests.bench.report import Row, comparison, heading, line, load, progress, save

MEASURED = {
    "images": images.measure,
    "uploads": uploads.measure,
    "replay": replay.measure,
    "sizes": sizes.measure,
    "scale": scale.measure,
    "webhooks": webhooks.measure,
}
PRINTED = {"animations": animations.main, "formats": formats.main, "hostile": hostile.main}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join([*MEASURED, *PRINTED]))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--against", type=Path, metavar="FILE", help="compare with the figures of another run")
    arguments = parser.parse_args()
    names = arguments.names or list(MEASURED)
    if unknown := set(names) - {*MEASURED, *PRINTED}:
        parser.error(f"there is no {', '.join(sorted(unknown))}: choose from {', '.join([*MEASURED, *PRINTED])}")
    # What is measured is a system of our own, whatever the environment says.
    for variable in [variable for variable in os.environ if variable.startswith("SHRINKSTREAM_")]:
        del os.environ[variable]
    rows: list[Row] = []
    try:
        for name in names:
            if name in PRINTED:
                PRINTED[name]()
                continue
            started = time.monotonic()
            print(f"\n{heading(name)}", flush=True)
            for row in MEASURED[name]():
                rows.append(row)
                print(line(row), flush=True)
            progress(f"{name} took {time.monotonic() - started:.0f} s")
    finally:
        if arguments.json:
            save(rows, arguments.json)
    if arguments.against:
        print(f"\nagainst {arguments.against}\n{comparison(load(arguments.against), rows)}")


if __name__ == "__main__":
    main()
