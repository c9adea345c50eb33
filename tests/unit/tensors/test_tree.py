"""Any state goes apart and comes back as it was, types included."""

import collections

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tensordb_data.errors import CheckpointError
from tensordb_data.tensors.leaf import build, host_bytes
from tensordb_data.tensors.tree import flatten, from_json, leaf_numbers, to_json, unflatten
from tests.helpers import same


def round_trip(state, framework="auto"):
    flat = flatten(state)
    structure = from_json(to_json(flat.structure))
    leaves = [
        build(
            leaf.kind,
            leaf.dtype,
            leaf.shape,
            np.frombuffer(bytearray(host_bytes(leaf)), np.uint8),
            framework,
            leaf.name,
        )
        for leaf in flat.leaves
    ]
    assert leaf_numbers(structure) == set(range(len(leaves)))
    return unflatten(structure, leaves)


arrays = npst.arrays(
    st.sampled_from(["<f4", ">f8", "<i2", "|b1", "|u1", "<c8", "<f2", "<u8", "<M8[ns]", "<U3", "|S2"]),
    npst.array_shapes(min_dims=0, min_side=0),
)
plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
states = st.recursive(
    plain | arrays,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner)
        | st.dictionaries(st.text(), inner).map(collections.OrderedDict)
    ),
    max_leaves=12,
)


@given(states)
def test_any_state_comes_back(state):
    assert same(round_trip(state), state)


@pytest.mark.parametrize("dtype", [d for d in vars(torch).values() if isinstance(d, torch.dtype)], ids=str)
def test_every_torch_dtype(dtype):
    try:
        tensor = torch.zeros(3, 4, dtype=torch.uint8).view(-1).to(torch.float32).to(dtype).reshape(3, 4)
    except (RuntimeError, NotImplementedError):
        pytest.skip("torch itself cannot make one")
    if tensor.is_quantized:
        with pytest.raises(CheckpointError, match="quantized"):
            flatten(tensor)
        return
    assert same(
        round_trip([tensor, tensor[0, 0], tensor[:0], tensor.t()]), [tensor, tensor[0, 0], tensor[:0], tensor.t()]
    )


def test_values_survive():
    values = torch.randn(5, 7)
    state = {
        "p": torch.nn.Parameter(values),
        "t": values.t(),
        "s": values[::2, 1::3],
        "e": values[0].expand(4, 7),
        "c": torch.tensor([1 + 2j]).conj(),
        "b": values.to(torch.bfloat16),
        "f": values.to(torch.float8_e4m3fn),
    }
    back = round_trip(state)
    for name, value in state.items():
        assert back[name].dtype == value.dtype
        assert torch.equal(back[name].to(torch.complex64), value.detach().to(torch.complex64)), name
        assert back[name].is_contiguous() and not back[name].requires_grad


def test_scalars_keep_their_kind():
    back = round_trip({"a": np.float32(1.5), "b": np.int64(3), "c": np.array(2.0), "d": np.str_("x"), 3: 2**100})
    assert type(back["a"]) is np.float32 and type(back["b"]) is np.int64 and type(back["c"]) is np.ndarray
    assert type(back["d"]) is np.str_ and back[3] == 2**100


def test_counter_and_ml_dtypes():
    state = {"m": collections.Counter({3: 1, 9: 2}), "b": np.arange(4).astype(ml_dtypes.bfloat16)}
    assert same(round_trip(state), state)


def test_tied_tensors_are_kept_once_and_stay_tied():
    tensor = torch.randn(4)
    flat = flatten({"a": tensor, "b": tensor.detach(), "c": tensor[:2]})
    assert len(flat.leaves) == 2
    back = round_trip({"a": tensor, "b": tensor})
    assert back["a"] is back["b"]


def test_numpy_for_what_was_torch_and_back():
    assert type(round_trip({"a": torch.ones(2)}, "numpy")["a"]) is np.ndarray
    assert isinstance(round_trip({"a": np.ones(2)}, "torch")["a"], torch.Tensor)
    bfloat16 = torch.ones(2, dtype=torch.bfloat16)
    assert round_trip(bfloat16, "numpy").dtype == ml_dtypes.bfloat16


def test_names_are_unique():
    names = [
        leaf.name
        for leaf in flatten({0: np.ones(1), "0": np.ones(1), "a": {"b": np.ones(1)}, "a/b": np.ones(1)}).leaves
    ]
    assert len(set(names)) == 4


class Thing:
    pass


Point = collections.namedtuple("Point", "x y")
cycle = []
cycle.append(cycle)


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"a": [Thing()]}, r"state\['a'\]\[0\]: cannot save .*Thing"),
        ({"a": {1, 2}}, r"state\['a'\]: cannot save builtins.set"),
        ({(1, 2): 3}, r"key \(1, 2\) of type tuple"),
        ({True: 3}, "of type bool"),
        (Point(1, 2), "_asdict"),
        (cycle, "contains itself"),
        ({"m": torch.empty(2, device="meta")}, r"state\['m'\] is on the meta device"),
        ([torch.eye(2).to_sparse()], r"state\[0\] is a torch.sparse_coo tensor"),
        (np.array([object()]), "dtype object"),
        (np.zeros(2, dtype=[("a", "f4")]), "dtype"),
        (print, "cannot save"),
        (torch.nn.Linear, "cannot save"),
    ],
)
def test_what_cannot_be_saved_is_named(state, says):
    with pytest.raises(CheckpointError, match=says):
        flatten(state)
