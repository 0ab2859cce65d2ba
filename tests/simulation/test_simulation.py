"""The simulation finds nothing in the protocol as it is, and every rule that is taken out of it.

`make soak` runs it long: MFG_NOTIFY_SIMULATION_MINUTES says how long (5), and it starts with the seed
MFG_NOTIFY_SOAK_SEED. A failing seed is repeated by `python -m tests.simulation --seed N`.
"""

import os
import secrets
import time

import pytest
from rich.console import Console
from tests.simulation.agenda import InvariantError
from tests.simulation.mutations import MUTATIONS, Mutation
from tests.simulation.world import World

SEEDS = 12
STEPS = 10_000
"""Of each seed: five to ten changes of the weather."""
ATTEMPTS = 200
"""Seeds that are tried after the known one: a change of the code or of the simulation moves what happens to others."""
SOAK_STEPS = 100_000

found = [pytest.param(mutation, id=mutation.rule) for mutation in MUTATIONS if not mutation.why_not_found]
covered = [pytest.param(mutation, id=mutation.rule) for mutation in MUTATIONS if mutation.why_not_found]


def violation(seed: int, faults: tuple[str, ...]) -> str:
    """Run a seed; return what it has violated, nothing if it is clean."""
    try:
        World(seed, faults).run(STEPS)
    except InvariantError as found:
        return str(found)
    return ""


@pytest.mark.parametrize("seed", range(SEEDS))
def test_all_faults(seed: int) -> None:
    World(seed).run(STEPS)


def test_a_seed_repeats_a_run() -> None:
    worlds = [World(3), World(3)]
    for world in worlds:
        world.run(3000)
    assert worlds[0].agenda.trace() == worlds[1].agenda.trace()
    assert worlds[0].database.state == worlds[1].database.state


@pytest.mark.thorough
@pytest.mark.parametrize("mutation", found)
def test_a_rule_that_is_taken_out_is_missed(mutation: Mutation) -> None:
    assert not violation(mutation.seed, mutation.faults)
    with mutation.applied():
        assert any(violation(seed, mutation.faults) for seed in (mutation.seed, *range(ATTEMPTS)))


@pytest.mark.parametrize("mutation", covered)
def test_another_rule_covers_for_it(mutation: Mutation) -> None:
    with mutation.applied():
        assert not violation(mutation.seed, mutation.faults)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_simulation_soak(capsys: pytest.CaptureFixture[str]) -> None:
    first = seed = int(os.environ.get("MFG_NOTIFY_SOAK_SEED") or secrets.randbelow(1_000_000_000))
    deadline = time.monotonic() + 60 * float(os.environ.get("MFG_NOTIFY_SIMULATION_MINUTES") or 5)
    while time.monotonic() < deadline:
        World(seed, judges_restores=False).run(SOAK_STEPS)
        seed += 1
    with capsys.disabled():
        Console(highlight=False).print(
            f"\nsimulation: seeds {first} to {seed - 1}, {(seed - first) * SOAK_STEPS:,} steps, no violation"
        )
