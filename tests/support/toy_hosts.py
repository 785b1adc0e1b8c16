"""The toy search as a program of several processes: toy_hosts.py RUN_DIR PORT COUNT RANK [DELAY [JOIN [HEARTBEAT]]]."""

from __future__ import annotations

import os
import sys

from toy_problem import SMALL, ToyProblem

from jaxprune.hosts.joining import Group, joined
from jaxprune.interrupts import Interrupted
from jaxprune.search.led_problem import LedProblem
from jaxprune.search.problem import Trial
from jaxprune.search.search import evolve_problem


class CountingProblem(ToyProblem):
    """Says how many trials were run here."""

    def run(self, trial: Trial):
        outcome = super().run(trial)
        sys.stdout.write(f"{len(self.ran)}\n")
        sys.stdout.flush()
        if os.environ.get("FAIL_AT") == f"{sys.argv[4]}:{len(self.ran)}":
            raise ValueError("the toy is broken")
        return outcome


def main(
    run_dir: str, port: str, count: str, rank: str, delay: str = "0", join: str = "30", heartbeat: str = "10"
) -> int:
    group = Group(f"127.0.0.1:{port}", int(count), int(rank))
    with joined(group, seconds=int(join), heartbeat=int(heartbeat)) as hosts:
        problem = LedProblem(CountingProblem(delay_seconds=float(delay)), hosts)
        hosts.agree("tasks", {task.name: task.fingerprint for task in problem.tasks})
        if not hosts.is_leader:
            hosts.serve()
        evolve_problem(problem, SMALL, run_dir, resume=True)
    return 0


if __name__ == "__main__":
    try:
        status = main(*sys.argv[1:])
    except Interrupted as stop:
        sys.stderr.write(f"{stop}\n")
        status = stop.exit_status
    except Exception as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        status = getattr(error, "exit_status", 2)
    sys.exit(status)
