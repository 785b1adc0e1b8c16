import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxprune.structure.labels import FREE, Labels


def find(labels, *ids):
    return labels.find(np.array(ids)).tolist()


def test_united_labels_have_one_representative():
    labels = Labels(6)
    assert labels.unite(np.array([0, 1]), np.array([2, 3]))
    assert find(labels, 0, 1, 2, 3, 4) == [0, 1, 0, 1, 4]


def test_what_is_known_is_not_news():
    labels = Labels(4)
    assert labels.unite(np.array([0]), np.array([1]))
    assert not labels.unite(np.array([1]), np.array([0]))


def test_fill_meets_anything_and_says_nothing():
    labels = Labels(4)
    assert not labels.unite(np.array([0, FREE]), np.array([FREE, 1]))
    assert find(labels, 0, 1, FREE) == [0, 1, FREE]
    assert labels.reason_by_root() == {}


def test_what_meets_a_fixed_index_is_frozen_and_united_with_nothing():
    labels = Labels(4)
    wall = labels.fixed("input")
    labels.unite(np.array([0, 1, 2]), np.array([wall, FREE, wall]))
    assert labels.reason_by_root() == {0: "input", 2: "input"}
    assert find(labels, 0, 2) == [0, 2]


def test_a_class_is_frozen_with_the_first_reason_any_of_it_was_given():
    labels = Labels(4)
    labels.freeze(np.array([3]), "first")
    labels.freeze(np.array([1, 3]), "second")
    labels.unite(np.array([1]), np.array([3]))
    assert labels.reason_by_root() == {1: "first"}


def test_new_labels_are_like_old_ones():
    labels = Labels(2)
    (fresh,) = labels.fresh(1)
    labels.unite(np.array([fresh]), np.array([1]))
    assert (len(labels), find(labels, fresh)) == (3, [1])


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=40), st.integers(1, 7))
def test_it_equals_sets_joined_one_by_one(pairs, size):
    labels = Labels(20)
    sets = [{number} for number in range(20)]
    for start in range(0, len(pairs), size):
        part = pairs[start : start + size]
        labels.unite(np.array([a for a, _ in part]), np.array([b for _, b in part]))
        for a, b in part:
            joined = next(s for s in sets if a in s) | next(s for s in sets if b in s)
            sets = [s for s in sets if not s & joined] + [joined]
    expected = [min(next(s for s in sets if number in s)) for number in range(20)]
    assert find(labels, *range(20)) == expected
