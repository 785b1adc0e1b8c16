import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxprune.structure.layouts import Field, axis_keep, axis_terms, count_kept, gather, keep_mask


def field(group, channels):
    return Field(group, np.array(channels, np.int32))


A = field("a", [0, 1, 2])
FLAT = field("a", [0, 1, 2, 0, 1, 2])  # [h=2, c=3] flattened
JOINED = (field("a", [0, 1, 2, -1, -1]), field("b", [-1, -1, -1, 0, 1]))
CROSSED = (field("heads", [0, 0, 0, 1, 1, 1]), field("dims", [0, 1, 2, 0, 1, 2]))


def kept(**groups):
    return {name: np.array(index) for name, index in groups.items()}


@pytest.mark.parametrize(
    ("fields", "index", "expected"),
    [
        ((A,), kept(a=[0, 2]), [0, 2]),
        ((A,), kept(other=[0]), [0, 1, 2]),
        ((FLAT,), kept(a=[1]), [1, 4]),
        (JOINED, kept(a=[1], b=[0]), [1, 3]),
        (JOINED, kept(b=[1]), [0, 1, 2, 4]),
        (CROSSED, kept(heads=[1], dims=[0, 2]), [3, 5]),
        ((field("a", [0, 1]),), kept(a=[1, 5]), [1]),  # channel 5 sits on other axes only
        ((), kept(a=[0]), [0, 1, 2, 3]),
    ],
)
def test_an_index_stays_iff_each_of_its_channels_is_kept(fields, index, expected):
    length = len(fields[0].channels) if fields else 4
    assert np.flatnonzero(axis_keep(fields, length, index)).tolist() == expected


def test_gather_cuts_every_axis_and_keeps_the_kind_of_array():
    array = np.arange(18.0, dtype=np.float32).reshape(6, 3)
    layout = ((FLAT,), (A,))
    index = kept(a=[0, 2])
    expected = array[np.ix_([0, 2, 3, 5], [0, 2])]
    host, device = gather(array, layout, index), gather(jnp.asarray(array), layout, index)
    assert isinstance(host, np.ndarray) and isinstance(device, jax.Array)
    np.testing.assert_array_equal(host, expected)
    np.testing.assert_array_equal(device, expected)


def test_gather_returns_the_array_itself_where_nothing_is_cut():
    array = np.ones((3, 2))
    assert gather(array, ((A,), ()), kept(b=[0])) is array


def test_keep_mask_marks_the_entries_that_gather_keeps():
    array = np.arange(18.0).reshape(6, 3)
    layout, index = ((FLAT,), (A,)), kept(a=[0, 2])
    mask = keep_mask(layout, array.shape, index)
    assert isinstance(mask, np.ndarray) and mask.shape == array.shape
    np.testing.assert_array_equal(array[mask], gather(array, layout, index).ravel())


def test_traced_channels_under_vmap_give_what_known_ones_give_one_by_one():
    array = jnp.arange(30.0).reshape(5, 6)
    layout = (JOINED, CROSSED)
    rng = np.random.default_rng(0)
    sizes = {"a": (3, 2), "b": (2, 1), "heads": (2, 1), "dims": (3, 2)}
    batch = {
        name: np.stack([np.sort(rng.permutation(size)[:count]) for _ in range(4)])
        for name, (size, count) in sizes.items()
    }
    gathered, masks = jax.jit(
        jax.vmap(lambda index: (gather(array, layout, index), keep_mask(layout, array.shape, index)))
    )(batch)
    for number in range(4):
        index = {name: rows[number] for name, rows in batch.items()}
        np.testing.assert_array_equal(gathered[number], gather(np.asarray(array), layout, index))
        np.testing.assert_array_equal(masks[number], keep_mask(layout, array.shape, index))


def test_traced_and_known_channels_can_be_mixed():
    array = np.arange(6.0, dtype=np.float32)
    cut = jax.jit(lambda dims: gather(array, (CROSSED,), {"heads": np.array([1]), "dims": dims}))
    np.testing.assert_array_equal(cut(np.array([0, 2])), [3.0, 5.0])


@pytest.mark.parametrize(
    ("fields", "length", "expected"),
    [
        ((), 4, ((4, ()),)),
        ((), 0, ((0, ()),)),
        ((A,), 3, ((1, (("a", 3),)),)),
        ((FLAT,), 6, ((2, (("a", 3),)),)),
        (JOINED, 5, ((1, (("a", 3),)), (1, (("b", 2),)))),
        (CROSSED, 6, ((1, (("heads", 2), ("dims", 3))),)),
        ((field("a", [0, -1, 1, -1]),), 4, ((2, ()), (1, (("a", 2),)))),
        ((field("a", [-1, -1]),), 2, ((2, ()),)),
        # One group in two fields: side by side, at the same indices, and crossed with itself.
        ((field("a", [0, 1, -1, -1]), field("a", [-1, -1, 0, 1])), 4, ((2, (("a", 2),)),)),
        ((field("a", [0, 1]), field("a", [0, 1])), 2, ((1, (("a", 2),)),)),
        ((field("a", [0, 0, 1, 1]), field("a", [0, 1, 0, 1])), 4, ((1, (("a", 2), ("a", 2))),)),
    ],
)
def test_terms_of_an_axis(fields, length, expected):
    assert axis_terms(fields, length) == expected


UNEVEN = {
    "one channel twice": (field("a", [0, 1, 1]),),
    "a missing channel": (field("a", [0, 2]),),
    "half of the combinations": (field("a", [0, 1]), field("b", [0, 1])),
    "part of a group under another": (field("a", [0, 1, 2, 2]), field("b", [-1, -1, 0, 1])),
}


@pytest.mark.parametrize("fields", UNEVEN.values(), ids=UNEVEN)
def test_uneven_channels_are_refused_if_only_their_number_is_known(fields):
    length = len(fields[0].channels)
    with pytest.raises(ValueError, match="sit equally often on an axis"):
        count_kept(fields, length, {"a": 1})
    with pytest.raises(ValueError, match="outside of jit"):
        jax.eval_shape(lambda index: gather(jnp.ones(length), (fields,), {"a": index}), np.zeros(1, np.int32))
    assert gather(np.ones(length), (fields,), kept(a=[0])).size >= 1  # which channels are kept is known here


@given(st.data())
@settings(max_examples=30)
def test_counts_agree_with_gathered_lengths(data):
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    times = data.draw(st.integers(1, 3))
    num_others = data.draw(st.integers(0, 2))
    grid = np.indices((times, *sizes)).reshape(len(sizes) + 1, -1)
    order = data.draw(st.permutations(range(grid.shape[1] + num_others)))
    fields, index = [], {}
    for number, size in enumerate(sizes):
        channels = np.concatenate([grid[number + 1], np.full(num_others, -1)])[np.array(order)].astype(
            np.int32
        )
        fields.append(Field(str(number), channels))
        index[str(number)] = np.array(
            sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=size))), np.int32
        )
    length = len(order)
    counts = {name: len(channels) for name, channels in index.items()}
    expected = gather(np.arange(length), (tuple(fields),), index)
    assert count_kept(tuple(fields), length, counts) == len(expected)
    assert count_kept(tuple(fields), length, {}) == length


def test_terms_of_an_axis_are_cached():
    fields = (field("a", [0, 1, 2]),)
    assert axis_terms(fields, 3) is axis_terms(fields, 3)
    assert axis_terms((field("a", [0, 1, 2, 3]),), 4) == ((1, (("a", 4),)),)
