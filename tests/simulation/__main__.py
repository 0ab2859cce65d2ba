"""`python -m tests.simulation`: run seeds until one fails, or repeat one."""

import argparse
import time
from contextlib import nullcontext

from rich.console import Console
from tests.simulation.agenda import InvariantError
from tests.simulation.mutations import BY_RULE
from tests.simulation.weather import FAULTS
from tests.simulation.world import World


def main() -> int:
    """Run, and print what was found. Return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds to run")
    parser.add_argument("--steps", type=int, default=100_000, help="steps of each seed")
    parser.add_argument("--without", metavar="RULE", choices=sorted(BY_RULE), help="take out this rule of the protocol")
    given = parser.parse_args()
    mutation = BY_RULE[given.without] if given.without else None
    faults = mutation.faults if mutation else FAULTS
    console = Console(highlight=False, soft_wrap=True)
    started = time.process_time()
    with mutation.applied() if mutation else nullcontext():
        for seed in range(given.seed, given.seed + given.seeds):
            try:
                World(seed, faults).run(given.steps)
            except InvariantError as violation:
                console.print(str(violation), markup=False)
                return 1
    spent = time.process_time() - started
    steps = given.seeds * given.steps
    console.print(f"{steps} steps, no violation; {steps / spent * 60:,.0f} steps a minute of processor time")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
