"""Chooses the functions of a final comparison, by what is known from the search bases alone."""

from __future__ import annotations

from dataclasses import dataclass

from jaxprune.comparison.finals import GUESS, RANDOM_SEARCH, WINNER, Controls
from jaxprune.language.library import library, own_seeds
from jaxprune.scoring.lookup import FUNCTIONS, find_function
from jaxprune.scoring.metrics import PruningFunction, name_of
from jaxprune.search.state import Individual, SearchState, origin_name, start_formulas
from jaxprune.search.task_problem import TaskProblem
from jaxprune.types import Invalid

KNOWN = (
    "l2",
    "l1",
    "geometric_median",
    "fdr",
    "sym_div",
    "inspired_1",
    "mean_shift",
    "mean_shift_outgoing",
    "spread_outgoing",
    "taylor",
    "fisher",
    "taylor_activations",
)
"""Known functions, unlike one another, whose spread gives each task its sd, and among which rows are ranked."""


@dataclass
class Rows:
    """The functions that are compared.

    Args:
      functions: row name -> function.
      roles: row name -> what the row is, if its name does not say it.
      best_start: row of the best start formula; "winner" if that is the winner itself.
      best_known: row of the best known function; empty without landscapes.
    """

    functions: dict[str, PruningFunction]
    roles: dict[str, str]
    best_start: str
    best_known: str = ""

    @property
    def formulas(self) -> dict[str, str]:
        """Row name -> text of the function."""
        return {name: name_of(f) for name, f in self.functions.items()}

    @property
    def known(self) -> tuple[str, ...]:
        """The rows of known functions."""
        return tuple(name for name in self.functions if name not in (WINNER, GUESS, RANDOM_SEARCH))


def choose_rows(state: SearchState, winner: Individual, controls: Controls = "standard") -> Rows:
    """Chooses the functions of the final comparison by their results on the search bases.

    Args:
      state: the finished search.
      winner: its winner.
      controls: "standard" for l1, l2, the best library function and the best own seed, and after a search on
        landscapes those of `KNOWN`; "full" for all of the library and own seeds, and after a search on landscapes for
        all known functions.

    Returns:
      The rows, without random plans and training from scratch, which the comparison adds.

    Raises:
      ValueError: for other controls.
    """
    if controls not in ("standard", "full"):
        raise ValueError(f'controls needs to be "standard" or "full", got {controls!r}.')
    start = start_formulas(state)
    functions: dict[str, PruningFunction] = {WINNER: winner.expression, "l2": library["l2"]}
    if winner.expression is not library["l1"]:
        functions["l1"] = library["l1"]
    roles = {WINNER: "winner of the search"}
    for prefix, role in (("library", "best library function"), ("seed", "best own seed")):
        best = next(
            (individual for individual in start if individual.candidate.origin.startswith(f"{prefix}:")), None
        )
        if best is not None:
            name = origin_name(best)
            if best.expression is winner.expression:
                roles[WINNER] += f", the {role} {name} itself"
                continue
            functions[name] = best.expression
            roles[name] = f"{role} on the search bases"
    guess = next(
        (individual for individual in state.ranked() if individual.candidate.origin == "guess"), None
    )
    if guess is not None:
        functions[GUESS], roles[GUESS] = guess.expression, "best of the given formulas on the search bases"
    best_start = origin_name(start[0]) if start else "l2"
    best_start = best_start if best_start in functions else WINNER
    if (
        state.has_landscapes
    ):  # where a row that is the winner under its own name belongs to the known functions
        names = [name for name in FUNCTIONS if name != "random"] if controls == "full" else KNOWN
        functions |= {name: find_function(name) for name in names if name not in functions}
    elif controls == "full":
        functions |= {
            name: f
            for name, f in {**library, **own_seeds}.items()
            if name not in functions and f is not winner.expression
        }
    return Rows(functions, roles, best_start)


def add_best_known(rows: Rows, problem: TaskProblem, state: SearchState) -> None:
    """Adds the best of all known functions, by what landscapes predict on the search bases.

    Args:
      rows: the rows, to which it is added.
      problem: what was searched on; its landscapes are fitted if they are not.
      state: the finished search on landscapes.
    """
    problem.fit_landscapes(state.config.plans)
    names = [name for name in FUNCTIONS if name != "random"]
    functions = {name: find_function(name) for name in names}
    fitness = {
        name: state.predicted_fitness(predicted).mean
        for name, predicted in zip(names, problem.predict(list(functions.values())), strict=True)
        if not isinstance(predicted, Invalid)
    }
    best = max(fitness, key=lambda name: fitness[name])
    row = WINNER if functions[best] is rows.functions[WINNER] else best
    rows.best_known = row
    rows.functions.setdefault(row, functions[best])
    role = f"best of {len(fitness)} known functions, by what the landscapes predict"
    rows.roles[row] = f"{rows.roles[row]}, {role}" if row in rows.roles else role
