"""``python -m tests.soak [MINUTES]``: the soak as a program, with a table; exits 1 when anything went wrong."""

import sys
import tempfile
from pathlib import Path

from tests.soak.soak import run_soak

MINUTES = 15.0
SEED = 1


def main() -> int:
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else MINUTES
    print(f"{minutes:g} minutes of uploads, with faults", flush=True)
    with tempfile.TemporaryDirectory(prefix="shrinkstream-soak-") as folder:
        soaked = run_soak(minutes, seed=SEED, data_dir=Path(folder))
    print(f"{soaked.requests} requests, {soaked.images} images, the slowest took {soaked.slowest:.0f} s to its webhook")
    print("faults: " + ", ".join(f"{role} {times}" for role, times in sorted(soaked.done.items())))
    print(f"requests that were waiting: at most {max(soaked.unfinished)}, at the end {soaked.unfinished[-1]}")
    print(
        f"{'the longest life':18} {'seconds':>8} {'MB early':>9} {'MB late':>9} {'files early':>12} {'files late':>11}"
    )
    for growth in soaked.growth:
        (before, after), (opened, open_now) = growth.memory, growth.files
        print(
            f"{growth.role:18} {growth.seconds:8.0f} {before / 1e6:9.0f} {after / 1e6:9.0f}"
            f" {opened:12.0f} {open_now:11.0f}"
        )
    for fault in soaked.faults:
        print(f"WRONG: {fault}")
    return 1 if soaked.faults else 0


if __name__ == "__main__":
    sys.exit(main())
