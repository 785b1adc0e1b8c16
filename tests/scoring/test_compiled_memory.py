"""Compiled functions: a bounded number of programs is kept, the last used ones."""

from __future__ import annotations

import gc
import weakref

import numpy as np

from jaxprune.language.parsing import parse
from jaxprune.observation.operands import Operands
from jaxprune.scoring import compiled

OPERANDS = Operands.from_arrays(features=np.eye(2), labels=[0, 1], kernel=[[1.0, -2.0], [3.0, 4.0]])


def test_functions_used_long_ago_are_given_up() -> None:
    first = weakref.ref(compiled.compile(parse("sum(abs(WI * 0.5))")))
    last = compiled.compile(parse("sum(abs(WI * 1.5))"))
    for number in range(2, 2 + compiled.MAX_COMPILED):  # nothing compiles before a call
        last = compiled.compile(parse(f"sum(abs(WI * {number}.5))"))
    gc.collect()
    assert first() is None
    assert compiled.compile(parse(f"sum(abs(WI * {number}.5))")) is last
    assert compiled.MAX_COMPILED <= 64  # 2 MB each


def test_functions_in_use_stay_compiled() -> None:
    formula = parse("sum(abs(WI))")
    function = compiled.compile(formula)
    function(OPERANDS)
    for number in range(compiled.MAX_COMPILED // 2):
        compiled.compile(parse(f"sum(abs(WI * {number}.25))"))
    assert compiled.compile(formula) is function
    assert function(OPERANDS).tolist() == [4.0, 6.0]
