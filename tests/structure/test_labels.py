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


def test_uniting_labels_again_reports_no_change():
    labels = Labels(4)
    assert labels.unite(np.array([0]), np.array([1]))
    assert not labels.unite(np.array([1]), np.array([0]))


def test_free_indices_meet_labels_without_effect():
    labels = Labels(4)
    assert not labels.unite(np.array([0, FREE]), np.array([FREE, 1]))
    assert find(labels, 0, 1, FREE) == [0, 1, FREE]
    assert labels.reason_by_root() == {}


def test_labels_that_meet_a_marker_are_frozen_and_not_united():
    labels = Labels(4)
    marker = labels.fixed_marker("input")
    labels.unite(np.array([0, 1, 2]), np.array([marker, FREE, marker]))
    assert labels.reason_by_root() == {0: "input", 2: "input"}
    assert find(labels, 0, 2) == [0, 2]


def test_united_labels_are_frozen_for_the_first_reason_given_to_any_of_them():
    labels = Labels(4)
    labels.freeze(np.array([3]), "first")
    labels.freeze(np.array([1, 3]), "second")
    labels.unite(np.array([1]), np.array([3]))
    assert labels.reason_by_root() == {1: "first"}


def test_added_labels_can_be_united_like_the_first_ones():
    labels = Labels(2)
    (added,) = labels.add(1)
    labels.unite(np.array([added]), np.array([1]))
    assert (len(labels), find(labels, added)) == (3, [1])


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=40), st.integers(1, 7))
def test_uniting_arrays_equals_joining_sets_one_by_one(pairs, size):
    labels = Labels(20)
    sets = [{number} for number in range(20)]
    for start in range(0, len(pairs), size):
        chunk = pairs[start : start + size]
        labels.unite(np.array([a for a, _ in chunk]), np.array([b for _, b in chunk]))
        for a, b in chunk:
            joined = next(s for s in sets if a in s) | next(s for s in sets if b in s)
            sets = [s for s in sets if not s & joined] + [joined]
    expected = [min(next(s for s in sets if number in s)) for number in range(20)]
    assert find(labels, *range(20)) == expected
