"""``python -m tests.drill [SEED …]``: the drill as a program, with a table; exits 1 when anything went wrong."""

import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.drill.drill import run_drill
from tests.drill.faults import Kind

IMAGES = 1000
MORE_IMAGES = 60
FAULTS = int(os.environ.get("DRILL_FAULTS", "20"))
SECONDS = (5.0, float(os.environ.get("DRILL_SECONDS", "60")))
SEEDS = (1, 2, 3)


def main() -> int:
    seeds = [int(argument) for argument in sys.argv[1:]] or list(SEEDS)
    wrong = 0
    print(
        f"{IMAGES} images and {MORE_IMAGES} more before each of {FAULTS} faults of {SECONDS[0]:g} to {SECONDS[1]:g} s;"
        " `python -m tests.drill SEED` repeats one"
    )
    print(
        "seed  " + "  ".join(kind.value for kind in Kind) + "  images  seconds  healed  fetches  webhooks  faults",
        flush=True,
    )
    for seed in seeds:
        with tempfile.TemporaryDirectory(prefix="shrinkstream-drill-") as folder:
            outcome = run_drill(
                seed, images=IMAGES, more_images=MORE_IMAGES, faults=FAULTS, seconds=SECONDS, data_dir=Path(folder)
            )
        made = Counter(fault.kind for fault in outcome.made)
        kinds = "  ".join(f"{'skipped' if kind in outcome.skipped else made[kind]:>{len(kind.value)}}" for kind in Kind)
        print(
            f"{seed:>4}  {kinds}  {outcome.images:>6}  {outcome.seconds:7.0f}  {outcome.healed:6.0f}"
            f"  {outcome.fetched:7}  {outcome.webhooks:8}  {len(outcome.faults):6}",
            flush=True,
        )
        print("      made: " + ", ".join(map(str, outcome.made)))
        print("      events / usual: " + ", ".join(f"{name} {n:.2f}" for name, n in outcome.per_image.items()))
        for fault in outcome.faults:
            print(f"      {fault}", flush=True)
        wrong += len(outcome.faults)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
