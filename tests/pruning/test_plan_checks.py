"""One check of kept channels: whatever takes a plan says the same about it, and names file and group."""

import contextlib
import copy
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pruned_nets import IMAGES, plain

from jaxprune.pruning.masking import channel_masks, mask
from jaxprune.pruning.planning import Plan, make_plan
from jaxprune.pruning.slimming import slim, slim_state
from jaxprune.structure.model_state import split_model
from jaxprune.structure.tracing import trace_structure

STRUCTURE = trace_structure(plain(), IMAGES)
WHOLE = make_plan(STRUCTURE, {})
FLAT = split_model(plain())[1]

BAD_KEPT = {
    "beyond": [0, 4],
    "below": [-1, 0],
    "twice": [1, 1],
    "falling": [1, 0],
    "no whole number": [0, 1.5],
    "a whole float": [0.0, 1.0],
    "text": "01",
    "texts": ["0", "1"],
    "booleans": [False, True],
    "one boolean": [0, True],
    "nothing": [],
    "null": None,
    "one number": 2,
    "nested": [[0, 1]],
    "an object": {"0": 0},
    "infinite": [0, float("inf")],
    "no number": [float("nan")],
    "huge": [0, 10**400],
    "all and more": [0, 1, 2, 3, 3],
}


def edited(**changes):
    """Returns the JSON record of a plan, with changes to the entry of its first group."""
    record = json.loads(WHOLE.to_json())
    record["groups"]["conv1.kernel"].update(changes)
    return record


@pytest.mark.parametrize("kept", BAD_KEPT.values(), ids=BAD_KEPT)
class TestKeptIndicesThatDoNotFit:
    def test_a_file_is_refused_by_name(self, tmp_path, kept):
        (tmp_path / "plan.json").write_text(json.dumps(edited(kept=kept)))
        with pytest.raises(
            ValueError, match=r"plan\.json: .*group conv1\.kernel needs .* kept indices|indices"
        ):
            Plan.load(tmp_path / "plan.json")

    def test_a_plan_cannot_be_made_of_them(self, kept):
        with pytest.raises(ValueError, match=r"group conv1\.kernel needs"):
            replace(WHOLE, kept={**WHOLE.kept, "conv1.kernel": kept})
        with pytest.raises(ValueError, match=r"group conv1\.kernel needs"):
            make_plan(STRUCTURE, {"conv1.kernel": kept})

    def test_a_plan_cannot_be_edited_in_memory(self, kept):
        with pytest.raises(TypeError, match="does not support item assignment"):
            WHOLE.kept["conv1.kernel"] = kept
        assert WHOLE.kept["conv1.kernel"] == (0, 1, 2, 3)

    def test_arrays_of_a_network_are_not_cut_by_them(self, kept):
        for function in (
            lambda kept: slim_state(STRUCTURE, FLAT, kept),
            lambda kept: channel_masks(STRUCTURE, kept),
        ):
            with pytest.raises(ValueError, match=r"group conv1\.kernel needs"):
                function({"conv1.kernel": kept})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 5}, "group conv1.kernel has 4 channels, not 5"),
        ({"width": 5, "kept": [0, 4]}, "group conv1.kernel has 4 channels, not 5"),
        ({"width": 3, "kept": [0, 2]}, "group conv1.kernel has 4 channels, not 3"),
        ({"width": 10**30, "kept": [10**29]}, "group conv1.kernel has 4 channels, not 1000"),
    ],
)
@pytest.mark.parametrize("function", [slim, mask])
def test_the_widths_of_a_plan_are_those_of_the_network(tmp_path, change, message, function):
    (tmp_path / "plan.json").write_text(json.dumps(edited(**change)))
    with pytest.raises(ValueError, match=rf"plan\.json: needs kept indices .* {message}"):
        function(plain(), Plan.load(tmp_path / "plan.json"))


@pytest.mark.parametrize("function", [slim, mask])
def test_an_unknown_group_of_a_file_is_named(tmp_path, function):
    record = edited()
    record["groups"]["nope"] = {"width": 4, "kept": [0]}
    (tmp_path / "plan.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"plan\.json: .*no group is called 'nope' \(groups: conv1\.kernel"):
        function(plain(), Plan.load(tmp_path / "plan.json"))


@pytest.mark.parametrize("width", [0, -4, 4.0, "4", True, None, float("inf")])
def test_a_width_that_is_no_width_is_refused(width):
    with pytest.raises(ValueError, match=r"group conv1\.kernel needs a whole number >= 1 as width"):
        Plan.from_json(json.dumps(edited(width=width)))


BAD_RECORDS = {
    "format 0": ({"format": 0}, "format must be 1, got 0"),
    "format true": ({"format": True}, "format must be 1, got True"),
    "format 1.0": ({"format": 1.0}, r"format must be 1, got 1\.0"),
    "format infinite": ({"format": float("inf")}, "format must be 1, got inf"),
    "format newer": ({"format": 2}, "needs a plan of format 1 or older, got 2"),
    "fingerprint": ({"fingerprint": 3}, "fingerprint must be a text, got 3"),
    "shape text": (
        {"example": {"shape": "288", "dtype": "float32"}},
        "example must have a shape and a dtype",
    ),
    "shape zero": (
        {"example": {"shape": [2, 0], "dtype": "float32"}},
        "example must have a shape and a dtype",
    ),
    "shape huge": (
        {"example": {"shape": [10**30], "dtype": "float32"}},
        "example must have a shape and a dtype",
    ),
    "dtype": ({"example": {"shape": [2, 8], "dtype": "object"}}, "example must have a shape and a dtype"),
    "dtype unknown": (
        {"example": {"shape": [2, 8], "dtype": "float33"}},
        "example must have a shape and a dtype",
    ),
    "no dtype": ({"example": {"shape": [2, 8]}}, "example must have a shape and a dtype"),
    "groups": ({"groups": []}, r"groups must be an object, got \[\]"),
    "a group": ({"groups": {"a": [0]}}, r"group a must have a width and kept indices, got \[0\]"),
    "half a group": ({"groups": {"a": {"kept": [0]}}}, "group a must have a width and kept indices"),
}


@pytest.mark.parametrize(("change", "message"), BAD_RECORDS.values(), ids=BAD_RECORDS)
def test_every_part_of_a_record_is_checked(change, message):
    with pytest.raises(ValueError, match=message):
        Plan.from_json(json.dumps({**edited(), **change}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, r"needs a plan as Plan\.to_json writes it, but got '\[\[.*RecursionError"),
        ('{"a":' * 100_000, r"needs a plan as Plan\.to_json writes it"),
        ("9" * 5000, r"needs a plan as Plan\.to_json writes it"),
        ("", r"needs a plan as Plan\.to_json writes it"),
        (WHOLE.to_json().replace("dense.kernel", "conv2.kernel"), "'conv2.kernel' is listed twice"),
    ],
    ids=["brackets", "braces", "digits", "empty", "repeated"],
)
def test_text_that_json_cannot_hold_is_refused_by_file(tmp_path, text, message):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ValueError, match=rf"plan\.json: .*{message}"):
        Plan.load(tmp_path / "plan.json")


def test_bytes_that_are_no_text_are_refused_by_file(tmp_path):
    (tmp_path / "plan.json").write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(ValueError, match=r"plan\.json: .*utf-8"):
        Plan.load(tmp_path / "plan.json")


def test_a_byte_order_mark_does_no_harm(tmp_path):
    (tmp_path / "plan.json").write_text(WHOLE.to_json(), encoding="utf-8-sig")
    assert Plan.load(tmp_path / "plan.json") == WHOLE


def test_copies_of_a_plan_are_equal(tmp_path):
    WHOLE.save(tmp_path / "plan.json")
    plan = Plan.load(tmp_path / "plan.json")
    for again in (copy.copy(plan), copy.deepcopy(plan)):
        assert again == plan and again.source == plan.source != ""


def test_groups_that_a_plan_leaves_out_stay_whole():
    record = edited(kept=[0, 2])
    del record["groups"]["dense.kernel"]
    smaller = slim(plain(), Plan.from_json(json.dumps(record)))
    assert smaller.conv1.kernel.shape[3] == 2 and smaller.dense.kernel.shape[1] == 5


@pytest.mark.parametrize("make", [tuple, list, np.array, jnp.array, lambda kept: np.array(kept, np.uint8)])
def test_whole_numbers_of_any_kind_make_the_same_plan(make):
    plan = make_plan(STRUCTURE, {"conv1.kernel": make([0, 3])})
    assert plan.kept["conv1.kernel"] == (0, 3) and Plan.from_json(plan.to_json()) == plan
    assert replace(plan, kept={**plan.kept, "conv1.kernel": make([0, 3])}) == plan


@pytest.mark.parametrize(
    "kept", [np.array([True, False, True, False]), np.array([0.0, 1.0]), np.zeros((1, 2), int)]
)
def test_arrays_that_are_no_indices_are_refused(kept):
    with pytest.raises(
        ValueError, match=r"group conv1\.kernel needs whole numbers in one row .* got an array of"
    ):
        channel_masks(STRUCTURE, {"conv1.kernel": kept})


def test_a_group_that_is_listed_twice_is_refused():
    with pytest.raises(ValueError, match=r"group conv1\.kernel is listed twice"):
        slim_state(STRUCTURE, FLAT, (("conv1.kernel", (0,)), ("conv1.kernel", (1,))))


def test_traced_indices_are_checked_by_shape_and_kind():
    masks = jax.jit(lambda kept: channel_masks(STRUCTURE, {"conv1.kernel": kept}))
    assert masks(jnp.array([0, 2]))[("conv1", "bias")].tolist() == [True, False, True, False]
    with pytest.raises(ValueError, match=r"group conv1\.kernel needs between 1 and 4 kept indices"):
        masks(jnp.arange(5))
    with pytest.raises(ValueError, match=r"needs whole numbers in one row .* an array of float32"):
        masks(jnp.array([0.0, 1.0]))


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner)
)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_record_with_any_value_anywhere_is_refused_or_means_what_it_says(data):
    record = edited(kept=[0, 2])
    places = [(record, name) for name in record] + [(record["example"], name) for name in record["example"]]
    group = record["groups"]["conv1.kernel"]
    places += [(group, name) for name in group] + [(group["kept"], 1)]
    holder, name = data.draw(st.sampled_from(places))
    holder[name] = data.draw(VALUES)
    with contextlib.suppress(ValueError):
        assert json.loads(Plan.from_json(json.dumps(record)).to_json()) == record
