import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.scoring import programs


def test_quick_and_plain_programs_agree():
    values = jnp.linspace(-1, 1, 101)
    for is_tiny in (False, True):
        quick = programs.quick_jit(lambda v, power: jnp.sum(v**power), static_argnums=(1,), is_tiny=is_tiny)
        np.testing.assert_allclose(quick(values, 2), jnp.sum(values**2), rtol=1e-6)


def test_options_that_xla_does_not_know_are_left_out(monkeypatch):
    monkeypatch.setattr(programs, "_PLAIN_EMITTERS", {"xla_no_such_option": True})
    programs._options.cache_clear()
    try:
        assert programs._options(True) is None
        assert programs.quick_jit(jnp.square)(3.0) == 9.0
    finally:
        monkeypatch.undo()
        programs._options.cache_clear()
    assert (programs._options(False) is not None) == (jax.default_backend() == "cpu")
