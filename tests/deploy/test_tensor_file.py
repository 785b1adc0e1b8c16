from __future__ import annotations

import json

import numpy as np
import pytest

from jaxprune.deploy.tensor_file import DTYPES, read_tensors, write_tensors


def made(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_bytes_of_a_file_by_hand(tmp_path):
    write_tensors(tmp_path / "one", {"a": np.array([1, 2], np.int8)})
    text = b'{"a": {"dtype": "I8", "shape": [2], "data_offsets": [0, 2]}}'
    text += b" " * (-len(text) % 8)
    assert (tmp_path / "one").read_bytes() == len(text).to_bytes(8, "little") + text + b"\x01\x02"


def test_arrays_of_every_type_come_back_bit_equal(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {name: (3 * rng.normal(size=(3, 5))).astype(dtype) for name, dtype in DTYPES.items()}
    arrays |= {"empty": np.zeros((0, 4), np.float32), "scalar": np.array(np.nan, np.float32)}
    arrays["turned"] = arrays["F32"].T
    write_tensors(tmp_path / "all", arrays, {"made": "by a test"})
    found = read_tensors(tmp_path / "all")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()


def test_the_library_of_that_name_reads_and_writes_the_same(tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones((), np.int64)}
    write_tensors(tmp_path / "ours", arrays)
    library.save_file(arrays, tmp_path / "theirs", {"format": "np"})
    for found in (library.load_file(tmp_path / "ours"), read_tensors(tmp_path / "theirs")):
        assert all(np.array_equal(found[name], array) for name, array in arrays.items())


ONE = {"dtype": "I8", "shape": [2], "data_offsets": [0, 2]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "header would take 0 bytes and the file has 0"),
        (b"\xff" * 16, "and the file has 16"),
        (made({"a": ONE}, b"\x01"), "a of shape .* is not at bytes 0 to 2"),
        (made({"a": {**ONE, "shape": [3]}}, b"\x01\x02"), "a of shape .* is not at bytes 0 to 2"),
        (made({"a": ONE}, b"\x01\x02\x03"), "overlap or leave gaps"),
        (made({"a": ONE, "b": ONE}, b"\x01\x02"), "overlap or leave gaps"),
        (made({"a": {**ONE, "dtype": "I4"}}, b"\x01\x02"), "does not say type, shape and place of a"),
        (made({"a": {**ONE, "shape": [-2]}}, b"\x01\x02"), "does not say type, shape and place of a"),
        (made({"a": 3}), "does not say type, shape and place of a"),
        (made([]), "its header is no object"),
        (made(b"nonsense"), "Expecting value"),
    ],
)
def test_other_files_are_refused(content, message, tmp_path):
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(ValueError, match=f"needs a whole safetensors file, got .*bad, but .*{message}"):
        read_tensors(tmp_path / "bad")


def test_types_and_names_that_the_format_lacks_are_refused(tmp_path):
    arrays = {"a": np.ones(2, np.complex128), "b": np.ones(2), "c": np.array(["text"])}
    with pytest.raises(ValueError, match=r"safetensors needs arrays of .*, got a \(complex128\), c \(<U4\)"):
        write_tensors(tmp_path / "bad", arrays)
    with pytest.raises(ValueError, match="needs other names of arrays than __metadata__"):
        write_tensors(tmp_path / "bad", {"__metadata__": np.ones(2)})
    assert not (tmp_path / "bad").exists()
