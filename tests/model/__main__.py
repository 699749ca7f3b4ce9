"""Compare the store with a dict, for as many seeds as are wanted: `python -m tests.model`.

python -m tests.model --seeds 200                           all configurations, the long form: 15 minutes
python -m tests.model --seed 7 --config deep --steps 700    one script again
python -m tests.model --seed 7 --config deep --shrink       find a short one that fails in the same way
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.model.configuration import CONFIGURATIONS
from tests.model.script import Failed, run, shortened

STEPS = 1500


def main() -> int:
    parser = argparse.ArgumentParser(description="Random operations on the store and on a dict.")
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds")
    parser.add_argument("--config", choices=list(CONFIGURATIONS), help="only this configuration")
    parser.add_argument("--steps", type=int, default=STEPS, help="operations per seed")
    parser.add_argument("--only", default="", help="only these steps, as --shrink prints them")
    parser.add_argument("--shrink", action="store_true", help="shorten a script that fails")
    parser.add_argument("--verbose", action="store_true", help="print each operation")
    arguments = parser.parse_args()
    names = [arguments.config] if arguments.config else list(CONFIGURATIONS)
    steps = [int(step) for step in arguments.only.split(",") if step] or range(arguments.steps)
    told = print if arguments.verbose else None
    counts: Counter[str] = Counter()
    started = said = time.monotonic()
    for seed in range(arguments.seed, arguments.seed + arguments.seeds):
        for name in names:
            try:
                counts += run(seed, name, steps, told)
            except Failed as failed:
                print(f"FAILED with seed {seed}: {failed}", file=sys.stderr)
                if arguments.shrink:
                    short = shortened(seed, name, failed, seconds=60)
                    only = ",".join(map(str, short))
                    print(f"{len(short)} steps: --seed {seed} --config {name} --only {only}")
                return 1
        if time.monotonic() - said > 5:
            said = time.monotonic()
            speed = sum(counts.values()) / (said - started)
            print(f"seed {seed} done, {speed:.0f} operations a second", flush=True)
    print(f"{arguments.seeds} seeds, {time.monotonic() - started:.0f} s: no difference")
    print(", ".join(f"{name} {number}" for name, number in sorted(counts.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
