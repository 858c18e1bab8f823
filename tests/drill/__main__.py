"""``python -m tests.drill [SEED …]``: the drill as a program, with a table; exits 1 when anything went wrong."""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.drill.drill import Made, run_drill

IMAGES = 1000
MORE_IMAGES = 60
SHORTEST = 5.0
SEEDS = (1, 2, 3)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.drill", description=__doc__)
    parser.add_argument("seeds", metavar="SEED", type=int, nargs="*", default=SEEDS, help="repeats a drill")
    parser.add_argument("--cluster", action="store_true", help="on three Kafka brokers and three Cassandra nodes")
    parser.add_argument("--faults", type=int, default=20, help="number of faults of a drill (default: 20)")
    parser.add_argument("--seconds", type=float, default=60.0, help="longest duration of a fault (default: 60)")
    parser.add_argument("--keep", type=Path, help="folder in which the data and logs of each drill are kept")
    options = parser.parse_args()
    wrong = 0
    for seed in options.seeds:
        where = "cluster" if options.cluster else "small system"
        print(f"seed {seed}, {where}: {IMAGES} images, and {MORE_IMAGES} more before each fault", flush=True)
        with tempfile.TemporaryDirectory(prefix="shrinkstream-drill-") as folder:
            outcome = run_drill(
                seed,
                images=IMAGES,
                more_images=MORE_IMAGES,
                faults=options.faults,
                seconds=(SHORTEST, options.seconds),
                data_dir=options.keep / f"{where}-{seed}" if options.keep else Path(folder),
                cluster=options.cluster,
            )
        print("  at s  until  next upload  fault, and what was not ready from when to when")
        for made in outcome.made:
            print(_line(made))
        skipped = ", ".join(outcome.skipped)
        print(
            f"  {outcome.images} images in {len(outcome.requests)} requests, {outcome.seconds:.0f} s; all complete"
            f" and ready {outcome.healed:.0f} s after the last fault; {outcome.fetched} fetches,"
            f" {outcome.webhooks} webhooks" + (f"; skipped: {skipped}" if skipped else "")
        )
        print("  events / usual: " + ", ".join(f"{name} {n:.2f}" for name, n in outcome.events.items()))
        for each in outcome.wrong:
            print(f"  WRONG: {each}")
        print(f"  {len(outcome.wrong)} wrong", flush=True)
        wrong += len(outcome.wrong)
    return 1 if wrong else 0


def _line(made: Made) -> str:
    accepted = "" if made.accepted is None else f"{made.accepted:.1f} s"
    away = "; ".join(map(str, made.outages)) or "nothing"
    return f"  {made.at:4.0f}  {made.ended:5.0f}  {accepted:>11}  {made.fault}: {away}"


if __name__ == "__main__":
    sys.exit(main())
