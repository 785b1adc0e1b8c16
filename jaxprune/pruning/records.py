"""What the tracer knows of values, kernels and costs while it walks a network."""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxprune.pruning.atoms import Atoms, Dim
from jaxprune.pruning.program import Program, Step, shape_of
from jaxprune.pruning.states import Path


@dataclass(frozen=True)
class Value:
    """What is known of an intermediate: axes, the parameters it is made of, the channels it carries.

    `sources` is empty for activations and constants; `producers` numbers entries of `Trace.productions`.
    """

    dims: tuple[Dim, ...]
    sources: frozenset[Path] = frozenset()
    is_activation: bool = False
    producers: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Use:
    """Where a produced channel first enters a layer with weights: the value, its axes, the kernel and what it reads."""

    value: int
    dims: tuple[Dim, ...]
    kernel: Path
    contracted: tuple[Dim, ...]


@dataclass
class Production:
    """One use of a kernel: its output axis, the scale and shift that follow, and its first consumer."""

    kernel: Path
    dim: Dim
    gamma: Path | None = None
    beta: Path | None = None
    is_scaled: bool = False
    use: Use | None = None


@dataclass(frozen=True)
class Cost:
    """Multiply-adds of one contraction: the product of its axes (batch included)."""

    dims: tuple[Dim, ...]


@dataclass
class Trace:
    """The result of a walk, still in terms of atoms; `groups.py` turns it into groups."""

    program: Program
    atoms: Atoms
    trained: frozenset[Path]
    layouts: dict[Path, tuple[Dim, ...]]
    batch: Dim
    values: dict[int, Value] = field(default_factory=dict)
    productions: list[Production] = field(default_factory=list)
    consumers: list[tuple[Path, Dim]] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)

    def produce(self, kernel: Path, dim: Dim) -> int:
        """Records that a kernel makes the channels of `dim`; returns the production's number."""
        self.productions.append(Production(kernel, dim))
        return len(self.productions) - 1

    def consume(self, number: int, value: Value, contracted: tuple[Dim, ...], kernel: Path) -> frozenset[int]:
        """Records that `kernel` reads its axes `contracted`; returns the productions that end here."""
        axes = tuple(atom for dim in contracted for atom in dim)
        self.consumers.append((kernel, axes))
        leaves = set(self.atoms.leaves(axes))
        ended = frozenset(
            index
            for index in value.producers
            if leaves.intersection(self.atoms.leaves(self.productions[index].dim))
        )
        for index in ended:
            if self.productions[index].use is None:
                self.productions[index].use = Use(number, value.dims, kernel, contracted)
        return ended

    def scale(self, value: Value, parameter: Value) -> None:
        """Notes the first learned scale after each production: gamma."""
        for production in self._touched(value, parameter):
            if not production.is_scaled:
                production.is_scaled = True
                trained = sorted(parameter.sources & self.trained, key=str)
                production.gamma = trained[0] if len(trained) == 1 else None

    def shift(self, value: Value, parameter: Value) -> None:
        """Notes the first learned shift after that scale: beta."""
        for production in self._touched(value, parameter):
            if production.is_scaled and production.beta is None:
                trained = sorted((parameter.sources & self.trained) - {production.gamma}, key=str)
                production.beta = trained[0] if len(trained) == 1 else None

    def _touched(self, value: Value, parameter: Value) -> list[Production]:
        leaves = {leaf for dim in parameter.dims for leaf in self.atoms.leaves(dim)}
        return [
            production
            for production in (self.productions[index] for index in value.producers)
            if production.use is None and leaves.intersection(self.atoms.leaves(production.dim))
        ]


def output_shapes(step: Step) -> list[tuple[int, ...]]:
    """Shapes of what a step makes."""
    return [shape_of(variable) for variable in step.equation.outvars]
