from __future__ import annotations

import numpy as np
import pytest

from jaxprune.deploy.tensor_files import DTYPES, read_tensors, write_tensors


def test_arrays_of_every_type_come_back_bit_equal(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {str(dtype): (3 * rng.normal(size=(3, 5))).astype(dtype) for dtype in DTYPES}
    arrays |= {"empty": np.zeros((0, 4), np.float32), "scalar": np.array(np.nan, np.float32)}
    arrays["turned"] = arrays["float32"].T
    write_tensors(tmp_path / "all", arrays, {"made": "by a test"})
    found = read_tensors(tmp_path / "all")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("content", [b"", b"\xff" * 16, b"\x02\0\0\0\0\0\0\0{}x", b"\x02\0\0\0\0\0\0\0[]"])
def test_other_files_are_refused(content, tmp_path):
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(ValueError, match=r"bad needs to be a whole safetensors file, but .*it is damaged"):
        read_tensors(tmp_path / "bad")


def test_types_that_do_not_come_back_are_refused(tmp_path):
    arrays = {"a": np.ones(2, np.complex128), "b": np.ones(2), "c": np.array(["text"])}
    with pytest.raises(ValueError, match=r"safetensors needs arrays of .*, got a \(complex128\), c \(<U4\)"):
        write_tensors(tmp_path / "bad", arrays)
    assert not (tmp_path / "bad").exists()
