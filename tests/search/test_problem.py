"""Records and settings: their checks, and what they derive."""

from __future__ import annotations

import numpy as np
import pytest

from jaxprune.search.problem import Behaviour, Outcome, TaskInfo, pack_kept, plan_distance, unpack_kept
from jaxprune.search.settings import EvolveConfig


def test_behaviour_digest_tells_tasks_and_bases_apart() -> None:
    digests = [{"a": ("x", "y")}, {"a": ("y", "x")}, {"b": ("x", "y")}, {"a": ("x",), "b": ("y",)}]
    assert len({Behaviour(by_task).digest for by_task in digests}) == 4
    assert Behaviour({"a": ("x",), "b": ("y",)}).digest == Behaviour({"b": ("y",), "a": ("x",)}, 1, 2).digest


def test_plan_distance_is_the_share_not_in_common() -> None:
    first = pack_kept([np.array([1, 1, 0, 0], bool), np.array([1, 0], bool)])
    other = pack_kept([np.array([1, 0, 1, 0], bool), np.array([1, 0], bool)])
    assert plan_distance(first, other) == pytest.approx(1 / 3)
    assert plan_distance("", other) == 1.0
    assert pack_kept([]) == ""
    assert plan_distance("00", "00") == 0.0


def test_packed_plans_of_another_problem_are_refused() -> None:
    with pytest.raises(ValueError, match=r"for 9 channels need 2 bytes, got 1.*of the same problem"):
        unpack_kept("8d", [4, 5])


@pytest.mark.parametrize("accuracy", [float("nan"), -1.0, 100.5])
def test_outcome_refuses_what_is_no_percentage(accuracy: float) -> None:
    with pytest.raises(ValueError, match="accuracy from 0 to 100 percent"):
        Outcome(accuracy)


def test_task_info_checks_its_numbers() -> None:
    with pytest.raises(ValueError, match="needs a name"):
        TaskInfo("")
    with pytest.raises(ValueError, match="finite weight > 0, got 0"):
        TaskInfo("t", weight=0)
    with pytest.raises(ValueError, match="bases >= 1 and extra_bases >= 0"):
        TaskInfo("t", bases=0)


def test_config_survives_json() -> None:
    config = EvolveConfig(generations=3, time_limit_seconds=60.0, strategy="random")
    assert EvolveConfig.from_json(config.to_json()) == config


def test_config_names_everything_that_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"tournament >= 1 \(got 0\); .*strategy one of evolution, random"):
        EvolveConfig(tournament=0, strategy="luck")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"max_evaluations above 0 or None \(got -5\)"):
        EvolveConfig(max_evaluations=-5)
    with pytest.raises(ValueError, match="seed < 2"):
        EvolveConfig(seed=2**31)
    with pytest.raises(ValueError, match="promote_fraction from 0 to 1"):
        EvolveConfig(promote_fraction=1.5)


def test_config_refuses_unknown_settings_and_wrong_kinds() -> None:
    with pytest.raises(ValueError, match=r"unknown setting popluation; EvolveConfig has generations"):
        EvolveConfig.from_json({"popluation": 3})
    with pytest.raises(TypeError, match="population needs a whole number, got 'many'"):
        EvolveConfig.from_json({"population": "many"})
    with pytest.raises(TypeError, match=r"elites needs a whole number, got 1\.5"):
        EvolveConfig().replace(elites=1.5)
    with pytest.raises(TypeError, match="promote_fraction needs a number, got True"):
        EvolveConfig.from_json({"promote_fraction": True})
    assert EvolveConfig.from_json({"time_limit_seconds": 60}).time_limit_seconds == 60.0
