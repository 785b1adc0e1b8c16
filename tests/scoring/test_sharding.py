"""Scores do not depend on how many devices share the channels."""

import os
import subprocess
import sys

SCRIPT = """
import sys
import jax
import numpy as np
from jax.sharding import Mesh
from jaxprune.language.parsing import parse
from jaxprune.language.published import library
from jaxprune.scoring.evaluator import Scorer, score_population
from test_engine import layer

network = {
    "conv1": layer(0, channels=3, positions=12, entries=5, outgoing=7),
    "conv2": layer(1, channels=17, positions=4, entries=8, outgoing=3),
}
texts = (
    "mean(abs(P - mX)) - std(Q*gamma)", "var(slice(abs(P), 2, 6)) + sum(WO)*beta", "mean(rbf(P, Q, 1))",
    "sum(inverse(matmul(transpose(Q), Q)))", "mean(geometric_median(W))", "mean(abs(X*GX)) + inner(GW, WI)",
)
functions = [parse(text) for text in texts] + [library[name] for name in ("fdr", "l2", "di", "evolved_eq3")]
alone = Scorer(network).run(functions)
assert len(jax.devices()) == 8
for size in map(int, sys.argv[1:]):
    mesh = Mesh(np.array(jax.devices()[:size]), ("channel",))
    found = Scorer(network, mesh=mesh).run(functions)
    for path in network:
        scale = np.abs(alone[path].scores).max(axis=(1, 2), keepdims=True)
        assert np.isfinite(alone[path].scores).all()
        worst = np.abs(found[path].scores - alone[path].scores) / scale
        assert worst.max() < 2e-5, (size, path, worst.max(axis=(1, 2)))
        np.testing.assert_array_equal(found[path].is_sound, alone[path].is_sound)
    if size == 2:
        np.testing.assert_array_equal(
            score_population(functions, network["conv1"], mesh=mesh),
            Scorer(network["conv1"], mesh=mesh).run(functions)[""].scores[:, 0],
        )
    print("devices", size, "equal")
"""


def test_one_two_four_and_eight_devices_give_the_same_scores():
    here = os.path.dirname(__file__)
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([here, os.path.dirname(os.path.dirname(here))]),
    }
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT, "1", "2", "4", "8"],
        env=environment, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-3000:]
    assert found.stdout.split("\n")[:4] == [f"devices {size} equal" for size in (1, 2, 4, 8)]
