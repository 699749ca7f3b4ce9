"""Scripts of the model test: which steps of a seed are run, and how a failing one is shortened.

A script is a list of step numbers. Each step draws from a generator of its own, so that the others stay what
they are when one is left out.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence

from tests.model.configuration import CONFIGURATIONS
from tests.model.machine import Machine


class Failed(AssertionError):
    """A script failed; `steps` are those up to the failure."""

    def __init__(self, seed: int, name: str, steps: Sequence[int], cause: BaseException) -> None:
        self.steps = list(steps)
        self.cause = cause
        command = f"python -m tests.model --seed {seed} --config {name} --steps {steps[-1] + 1}"
        super().__init__(f"{type(cause).__name__}: {cause}\nIt runs again with\n  {command}")


def run(
    seed: int, name: str, steps: Sequence[int], told: Callable[[str], None] | None = None
) -> Counter[str]:
    """Run a script in the configuration `name`. Raises Failed. `told` hears of each operation before the next."""
    machine = Machine(CONFIGURATIONS[name], seed)
    done: list[int] = []
    try:
        for step in steps:
            done.append(step)
            said = machine.run(step)
            if told is not None:
                told(f"{step} {said}")
        machine.finish()
    except Exception as error:
        raise Failed(seed, name, done, error) from error
    return machine.counts


def shortened(seed: int, name: str, failed: Failed, seconds: float) -> list[int]:
    """Leave out steps for as long as the script fails in the same way, and there is time."""
    end = time.monotonic() + seconds
    steps, size = failed.steps, len(failed.steps) // 2
    while size and time.monotonic() < end:
        at = 0
        while at < len(steps) and time.monotonic() < end:
            less = steps[:at] + steps[at + size :]
            try:
                run(seed, name, less)
                at += size
            except Failed as again:
                if type(again.cause) is type(failed.cause):
                    steps = again.steps
                else:
                    at += size
            except IndexError:  # Nothing is left.
                at += size
        size //= 2
    return steps
