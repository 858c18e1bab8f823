"""``python -m tests.drill [SEED …]``: the drill as a program, with a table; exits 1 when anything went wrong."""

import sys
import tempfile
from pathlib import Path

from tests.drill.drill import ROLES, run_drill

IMAGES = 2000
KILLS = 20
SEEDS = (1, 2, 3)


def main() -> int:
    seeds = [int(argument) for argument in sys.argv[1:]] or list(SEEDS)
    faults = 0
    print(f"{IMAGES} images, {KILLS} kills for each seed; `python -m tests.drill SEED` repeats one")
    print("seed  " + "  ".join(f"{role:>11}" for role in ROLES) + "  seconds  fetches  webhooks  faults", flush=True)
    for seed in seeds:
        with tempfile.TemporaryDirectory(prefix="shrinkstream-drill-") as folder:
            outcome = run_drill(seed, images=IMAGES, kills=KILLS, data_dir=Path(folder))
        kills = "  ".join(f"{outcome.kills[role]:>11}" for role in ROLES)
        print(
            f"{seed:>4}  {kills}  {outcome.seconds:7.0f}  {outcome.fetched:7}  {outcome.webhooks:8}"
            f"  {len(outcome.faults):6}",
            flush=True,
        )
        for fault in outcome.faults:
            print(f"      {fault}", flush=True)
        faults += len(outcome.faults)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
