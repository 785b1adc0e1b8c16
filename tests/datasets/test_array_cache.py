"""Arrays that were read are kept, and a damaged file is noticed and replaced."""

from __future__ import annotations

import numpy as np
import pytest

from jaxprune.datasets.array_cache import cached_arrays


def cached(file, calls, length=1000):
    def make():
        calls.append(1)
        return {"x": np.arange(length)}

    return cached_arrays(file, make, {"x": np.int64}, length=length)["x"]


def test_what_was_kept_is_not_made_again(tmp_path):
    calls: list[int] = []
    first, again = (cached(tmp_path / "new" / "x.npz", calls) for _ in range(2))
    assert len(calls) == 1
    np.testing.assert_array_equal(first, again)
    assert not first.flags.writeable and not again.flags.writeable
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.npz"]


@pytest.mark.parametrize("place", [0, 100, 4000, -30])
def test_a_flipped_byte_anywhere_that_matters_is_noticed(tmp_path, place):
    file, calls = tmp_path / "x.npz", []
    cached(file, calls)
    content = bytearray(file.read_bytes())
    content[place] ^= 0xFF
    file.write_bytes(content)
    np.testing.assert_array_equal(cached(file, calls), np.arange(1000))
    np.testing.assert_array_equal(cached(file, calls), np.arange(1000))
    assert len(calls) == 2, "made again once, and kept"


def test_a_file_that_was_cut_short_is_replaced(tmp_path):
    file, calls = tmp_path / "x.npz", []
    cached(file, calls)
    file.write_bytes(file.read_bytes()[:500])
    assert len(cached(file, calls)) == 1000 and len(calls) == 2


def test_a_file_with_another_number_of_rows_is_replaced(tmp_path):
    file, calls = tmp_path / "x.npz", []
    cached(file, calls)
    assert len(cached(file, calls, length=5)) == 5 and len(calls) == 2


def test_a_file_of_objects_is_replaced_and_not_run(tmp_path):
    file, calls = tmp_path / "x.npz", []
    np.savez(file, x=np.array([{}], object))
    assert len(cached(file, calls)) == 1000 and len(calls) == 1


def test_where_nothing_can_be_kept_a_warning_says_so(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.warns(UserWarning, match=r"x.npz needs to be writable to keep what was read, got"):
        assert len(cached(tmp_path / "file" / "x.npz", [])) == 1000
