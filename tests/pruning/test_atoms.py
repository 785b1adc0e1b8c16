import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxprune.pruning.atoms import Atoms


def test_axis_of_length_one_has_no_atoms():
    assert Atoms().dim(1) == ()


def test_meeting_a_product_expands_an_axis():
    atoms = Atoms()
    rows, h, w, c = (atoms.new(size) for size in (24, 2, 3, 4))
    atoms.unite((rows,), (h, w, c), "dot")
    assert atoms.leaves((rows,)) == (h, w, c)


def test_uniting_joins_reasons():
    atoms = Atoms()
    a, b = atoms.new(3), atoms.new(3, "output")
    atoms.unite((a,), (b,), "add")
    assert atoms.reason(a) == "output"


def test_products_that_do_not_line_up_are_frozen():
    atoms = Atoms()
    left, right = (atoms.new(3), atoms.new(4)), (atoms.new(4), atoms.new(3))
    atoms.unite(left, right, "add at here")
    assert all("add at here" in atoms.reason(atom) for atom in left + right)


def test_regrouping_splits_and_merges():
    atoms = Atoms()
    a, b = atoms.new(4), atoms.new(6)
    first, second, third = atoms.regroup([(a,), (b,)], (2, 4, 3), "reshape")
    assert [atoms.size(leaf) for leaf in atoms.leaves((a, b))] == [2, 2, 2, 3]
    assert [atoms.total(dim) for dim in (first, second, third)] == [2, 4, 3]


def test_regrouping_across_atoms_freezes():
    atoms = Atoms()
    a, b = atoms.new(6), atoms.new(4)
    dims = atoms.regroup([(a,), (b,)], (4, 6), "reshape at here")
    assert "reshape at here" in atoms.reason(a)
    assert [atoms.total(dim) for dim in dims] == [4, 6]


def test_regrouping_opens_atoms_united_with_the_split_one():
    atoms = Atoms()
    a, b = atoms.new(6), atoms.new(6)
    atoms.unite((a,), (b,), "add")
    dims = atoms.regroup([(a,), (b,)], (6, 2, 3), "reshape")
    assert [atoms.total(dim) for dim in dims] == [6, 2, 3]
    assert atoms.leaves((a,)) == atoms.leaves((b,)) == atoms.leaves(dims[1] + dims[2])


@given(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_regrouping_keeps_lengths(sizes, random):
    atoms = Atoms()
    target = list(sizes)
    random.shuffle(target)
    dims = atoms.regroup([atoms.dim(size) for size in sizes], target, "reshape")
    assert [atoms.total(dim) for dim in dims] == target
    assert np.prod([atoms.total(dim) for dim in dims]) == np.prod(sizes)
