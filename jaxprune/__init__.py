"""Evolve pruning functions and use them to make Flax networks smaller.

Every public name is here, `import jaxprune as jp`; its module is loaded when the name is first used, so that
importing the package costs nothing and starts no device work.

    jp.parse("sum(abs(WI))")                       formulas
    jp.observe, jp.score, jp.plan, jp.slim         from a network to a smaller one
    jp.trace_structure                             what of a network can go, what cannot, and why
    jp.Task, jp.evolve, jp.compare, jp.calibrate   from tasks to formulas, and how good they are
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from jaxprune._version import __version__

if (
    TYPE_CHECKING
):  # for type checkers and editors; `_HOME` says the same at run time, and a test compares them
    from jaxprune.comparison.calibration import calibrate
    from jaxprune.comparison.protocol import compare
    from jaxprune.datasets.dataset import Dataset, load_dataset
    from jaxprune.figures.network_diagram import groups_figure
    from jaxprune.language.expression import Expression
    from jaxprune.language.library import library, own_seeds
    from jaxprune.language.parsing import ParseError, parse
    from jaxprune.language.registration import register_operand, register_operator
    from jaxprune.nets.cost import count_macs, count_parameters
    from jaxprune.nets.factories import find_network
    from jaxprune.nets.small_nets import LeNet5, PlainConvNet
    from jaxprune.observation.observer import observe
    from jaxprune.observation.operands import Operands
    from jaxprune.pruning.masking import mask
    from jaxprune.pruning.planning import Plan, plan
    from jaxprune.pruning.slimming import slim
    from jaxprune.report.writing import write_report
    from jaxprune.scoring.compiled import compile
    from jaxprune.scoring.metrics import metrics
    from jaxprune.scoring.populations import score_population
    from jaxprune.scoring.ranking import score
    from jaxprune.search.evaluation import evaluate
    from jaxprune.search.proposals import ask
    from jaxprune.search.search import evolve, init_search
    from jaxprune.search.settings import EvolveConfig
    from jaxprune.search.task_problem import TaskProblem
    from jaxprune.search.update import tell
    from jaxprune.structure.groups import Structure
    from jaxprune.structure.tracing import trace_structure
    from jaxprune.tasks.named_tasks import find_task
    from jaxprune.tasks.tasks import Schedule, Task
    from jaxprune.training.recipes import Recipe
    from jaxprune.types import Invalid

__all__ = [
    "Dataset",
    "EvolveConfig",
    "Expression",
    "Invalid",
    "LeNet5",
    "Operands",
    "ParseError",
    "PlainConvNet",
    "Plan",
    "Recipe",
    "Schedule",
    "Structure",
    "Task",
    "TaskProblem",
    "__version__",
    "ask",
    "calibrate",
    "compare",
    "compile",
    "count_macs",
    "count_parameters",
    "evaluate",
    "evolve",
    "find_network",
    "find_task",
    "groups_figure",
    "init_search",
    "library",
    "load_dataset",
    "mask",
    "metrics",
    "observe",
    "own_seeds",
    "parse",
    "plan",
    "register_operand",
    "register_operator",
    "score",
    "score_population",
    "slim",
    "tell",
    "trace_structure",
    "write_report",
]

_NAMES = {
    "search.proposals": "ask",
    "comparison.calibration": "calibrate",
    "comparison.protocol": "compare",
    "search.evaluation": "evaluate",
    "tasks.named_tasks": "find_task",
    "search.task_problem": "TaskProblem",
    "search.search": "evolve init_search",
    "search.settings": "EvolveConfig",
    "tasks.tasks": "Schedule Task",
    "search.update": "tell",
    "figures.network_diagram": "groups_figure",
    "language.registration": "register_operand register_operator",
    "language.parsing": "ParseError parse",
    "language.library": "library own_seeds",
    "language.expression": "Expression",
    "nets.cost": "count_macs count_parameters",
    "nets.factories": "find_network",
    "nets.small_nets": "LeNet5 PlainConvNet",
    "structure.groups": "Structure",
    "pruning.masking": "mask",
    "observation.observer": "observe",
    "pruning.planning": "Plan plan",
    "pruning.slimming": "slim",
    "structure.tracing": "trace_structure",
    "report.writing": "write_report",
    "scoring.compiled": "compile",
    "scoring.populations": "score_population",
    "scoring.metrics": "metrics",
    "scoring.ranking": "score",
    "observation.operands": "Operands",
    "datasets.dataset": "Dataset load_dataset",
    "training.recipes": "Recipe",
    "types": "Invalid",
}
_HOME = {name: f"jaxprune.{module}" for module, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> object:
    """The public name, from its module, which is loaded now.

    Raises:
      AttributeError: if there is no such name.
    """
    if name not in _HOME:
        raise AttributeError(f"module 'jaxprune' has no attribute {name!r}; see jaxprune.__all__.")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value  # found at once from now on
    return value


def __dir__() -> list[str]:
    """The public names."""
    return sorted({*globals(), *__all__})
