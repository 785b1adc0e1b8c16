"""The distinct nodes of a population, in levels, with what is held at once."""

import pytest

from jaxprune.language.parsing import parse
from jaxprune.scoring.graph import (
    Graph,
    cone_of,
    last_uses,
    levels_of,
    needed_nodes,
    peak_size,
    split_to_fit,
)


def graph_of(*texts, view="full"):
    graph = Graph()
    return graph, [graph.add(parse(text), view) for text in texts]


def shown(graph, numbers):
    return [(graph.nodes[n].kind, graph.nodes[n].name or str(graph.nodes[n].key[0])) for n in numbers]


def test_equal_nodes_are_there_once():
    graph, wanted = graph_of("sum(abs(WI)) + var(P)", "sum(abs(WI))*N", "sum(abs(WI)) + var(P)")
    assert wanted[0] == wanted[2]
    assert [name for _, name in shown(graph, range(len(graph.nodes)))] == [
        "WI",
        "abs",
        "sum",
        "var(P)",
        "+",
        "N",
        "*",
    ]
    assert all(each < number for number, node in enumerate(graph.nodes) for each in node.inputs)


def test_what_reads_no_activations_is_the_same_in_both_views():
    graph = Graph()
    first, second = (graph.add(parse("sum(abs(WI))"), view) for view in ("full", "sample"))
    assert first == second
    assert graph.add(parse("var(P)"), "full") != graph.add(parse("var(P)"), "sample")


def test_statistics_of_all_classes_are_one_node():
    graph, _ = graph_of("mean(abs(P - mX)) - std(abs(Q - mX))", view="sample")
    kinds = [node.kind for node in graph.nodes]
    assert kinds.count("statistics") == 1 and kinds.count("statistic") == 2 and "rows" not in kinds
    assert not any(node.per_class for node in graph.nodes if node.is_large)


def test_levels_count_reductions_one_after_another():
    graph, wanted = graph_of("sum(WI*sum(WO*mean(X)))")
    levels, last = levels_of(graph, needed_nodes(graph, wanted), wanted)
    reductions = [number for number in levels if graph.nodes[number].is_reduction]
    assert [levels[number] for number in reductions] == [1, 2]
    inner, outer = reductions
    assert last[inner] == 2 and last[outer] > 2
    moment = next(number for number, node in enumerate(graph.nodes) if node.kind == "moment")
    assert last[moment] == 1


def test_what_is_known_needs_nothing():
    graph, wanted = graph_of("sum(abs(WI)) + var(P)")
    reduction = next(number for number in range(len(graph.nodes)) if graph.nodes[number].is_reduction)
    needed = needed_nodes(graph, wanted, {reduction})
    assert shown(graph, needed) == [("moment", "var(P)"), ("operator", "+")]


def test_values_are_let_go_when_nobody_reads_them():
    graph, wanted = graph_of("sum(abs(WI)*square(WI))")
    order = cone_of(graph, wanted)
    names = {number: graph.nodes[number].name for number in order}
    uses = {names[number]: [names[each] for each in own] for number, own in last_uses(graph, order).items()}
    assert uses == {"square": ["WI"], "*": ["abs", "square"], "sum": ["*"]}
    assert peak_size(graph, order, lambda node: 10) == 30 + 10  # a product, and three times that to sum it up
    assert "*" not in {
        names[each] for own in last_uses(graph, order, permanent=order).values() for each in own
    }


def test_jobs_are_split_before_blocks_become_smaller():
    holds = lambda part, block: len(part) * block  # noqa: E731
    halved = lambda block: -(-block // 2)  # noqa: E731
    assert list(split_to_fit([1, 2, 3, 4], 8, holds, 16, halved)) == [([1, 2], 8), ([3, 4], 8)]
    assert list(split_to_fit([1, 2], 8, holds, 5, halved)) == [([1], 4), ([2], 4)]
    assert list(split_to_fit([1], 8, holds, 0, halved)) == [([1], 1)]
    assert list(split_to_fit([], 8, holds, 0, halved)) == [([], 8)]


@pytest.mark.parametrize(
    ("text", "looked_at"),
    [("N/(NQ - NX)", ["NQ - NX"]), ("sum(mX/abs(mP))", ["abs(mP)"]), ("sum(X) + 1", []), ("N/2", [])],
)
def test_soundness_looks_at_what_may_vanish(text, looked_at):
    graph = Graph()
    found = graph.add_soundness(parse(text), "full")
    assert [str(graph.nodes[number].key[0]) for number in found] == looked_at
