"""Every primitive of the installed JAX has a rule, or is frozen on purpose."""

import importlib
import pkgutil
import warnings

import jax
import pytest
from jax.extend.core import Primitive

from jaxprune.structure import propagation, rules

# Languages for kernels, of which a network only holds the whole (`pallas_call`), and packages on other libraries.
LEFT_OUT = tuple(
    """jax._src.pallas jax._src.lib jax._src.tpu_custom_call jax.collect_profile jax.experimental.jax2tf
    jax.experimental.mosaic jax.experimental.pallas jax.tools""".split()
)

# Replaced by the operations that they call (`_called_jaxpr` in program.py).
CALLS = frozenset(
    """call call_hi_primitive call_hi_primitive_linearized closed_call composite compute_on custom_jvp_call
    custom_jvp_call_jaxpr custom_partitioning custom_vjp_call custom_vmap_call eval_jaxpr fused_call jit remat2
    remat_opt xla_metadata_call""".split()
)


@pytest.fixture(scope="module")
def primitives():
    """Name -> module, of all primitives that a module of JAX holds."""
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of the modules are deprecated
        for info in pkgutil.walk_packages(jax.__path__, "jax."):
            if not info.name.startswith(LEFT_OUT):
                values = vars(importlib.import_module(info.name)).values()
                found.update((each.name, info.name) for each in values if isinstance(each, Primitive))
    return found


def test_every_primitive_has_a_rule_or_is_frozen_on_purpose(primitives):
    assert len(primitives) > 250  # the walk has found them
    known = {*rules.RULES, *propagation.CONTROL_FLOW, *rules.FROZEN_ON_PURPOSE, *CALLS}
    new = [f"{name} ({module})" for name, module in sorted(primitives.items()) if name not in known]
    assert not new, (
        f"This JAX ({jax.__version__}) has primitives that jaxprune does not know: {', '.join(new)}. Give each a rule "
        "(jaxprune/structure/*_rules.py; `_IDENTITIES` and `_ELEMENTWISE` in rules.py take a name alone) with a case "
        "in test_operations.py, or add it to `_FROZEN` in rules.py with the reason, or to CALLS here."
    )


def test_no_primitive_is_listed_twice():
    listed = [*rules.RULES, *propagation.CONTROL_FLOW, *rules.FROZEN_ON_PURPOSE, *CALLS]
    assert len(set(listed)) == len(listed)
    names = [name for names in rules._FROZEN.values() for name in names.split()]
    assert len(set(names)) == len(names)
