"""What is deployed comes back as it was saved, and opens as an ordinary safetensors file."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from bson import ObjectId
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tensordb_data.deploy import bundle
from tests.helpers import same

arrays = hnp.arrays(
    st.sampled_from(["<f4", "<f8", "<i8", "|u1", "|b1", "<f2"]), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0)
)
plain = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats() | st.text(max_size=5)
states = st.recursive(
    arrays | plain,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=4) | st.integers(0, 9), inner, max_size=3)
        | st.tuples(inner, inner)
    ),
    max_leaves=8,
)


@given(states)
def test_comes_back_as_it_was(state: Any) -> None:
    about = {"_id": ObjectId(), "run": "r", "step": 7, "val_acc": 0.5}
    with tempfile.TemporaryDirectory() as folder:
        bundle.write(Path(folder), state, about)
        found = bundle.read(Path(folder))
    assert same(found.state, state) and found.about == about


def test_any_reader_of_safetensors_opens_it(tmp_path: Path) -> None:
    state = {"fc.weight": np.arange(6, dtype="f4").reshape(2, 3), "fc.bias": np.ones(2)}
    bundle.write(tmp_path, state, {})
    found = safetensors.numpy.load_file(tmp_path / bundle.TENSORS)
    assert same({name: found[name] for name in state}, state)
