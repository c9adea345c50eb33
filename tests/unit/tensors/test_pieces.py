"""Parts of tensors: where they lie is what torch says, and any parts can be put together from any others."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.tensor._utils import _compute_local_shape_and_global_offset
from torch.distributed.tensor.placement_types import Replicate, Shard

from tensordb_data import CheckpointError
from tensordb_data.params.table import LeafRow, merge, refuse_incomplete
from tensordb_data.tensors.pieces import copy_part, divided_box, is_whole

shapes = st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple)


@st.composite
def layouts(draw, shape):
    """A mesh, and which dimension of the tensor each of its dimensions divides."""
    mesh = draw(st.lists(st.integers(1, 4), min_size=1, max_size=2).map(tuple))
    dims = tuple(draw(st.sampled_from([None, *range(len(shape))])) for _ in mesh)
    return mesh, dims


def boxes(shape, mesh, dims):
    """The parts of all processes of which one of each replica stores something."""
    said = [None if dim is None else (dim, False) for dim in dims]
    places = itertools.product(*(range(n if dim is not None else 1) for n, dim in zip(mesh, dims, strict=True)))
    return [box for at in places if (box := divided_box(shape, mesh, at, said)).size]


@given(st.data(), shapes)
def test_parts_lie_where_torch_has_them(data, shape):
    mesh, dims = data.draw(layouts(shape))
    placements = [Replicate() if dim is None else Shard(dim) for dim in dims]
    for at in itertools.product(*map(range, mesh)):
        said = [None if dim is None else (dim, False) for dim in dims]
        box = divided_box(shape, mesh, at, said)
        local, offset = _compute_local_shape_and_global_offset(shape, mesh, list(at), placements)
        assert box.shape == tuple(local) and (not box.size or box.offset == tuple(offset))


def test_of_fsdp_on_a_tensor_parallel_layer():
    # the tensor parallel halves of 8 rows are [0, 4) and [4, 8); FSDP divides each of them
    found = {at: divided_box((8, 3), (2, 2), at, [(0, True), (0, False)]).offset[0] for at in np.ndindex(2, 2)}
    assert found == {(0, 0): 0, (0, 1): 4, (1, 0): 2, (1, 1): 6}


@given(st.data(), shapes)
def test_any_parts_are_put_together_from_any_others(data, shape):
    whole = np.arange(np.prod(shape), dtype="<i4").reshape(shape)
    saved, wanted = (boxes(shape, *data.draw(layouts(shape))) for _ in range(2))
    assert is_whole(shape, saved) and is_whole(shape, wanted)

    def cut(box):
        return whole[tuple(slice(at, at + n) for at, n in zip(box.offset, box.shape, strict=True))]

    for box in wanted:
        memory = np.zeros(4 * box.size, np.uint8)
        for other in saved:
            copy_part(memory, box, np.ascontiguousarray(cut(other)).reshape(-1).view(np.uint8), other, 4)
        assert np.array_equal(memory.view("<i4").reshape(box.shape), cut(box))
    if len(saved) > 1:
        gone = data.draw(st.sampled_from(saved))
        assert not is_whole(shape, [box for box in saved if box != gone])
        assert not is_whole(shape, [*saved, gone])


@pytest.mark.parametrize(
    "pieces",
    [
        [[[0], [2], None, "AAAA"]],  # half of it
        [[[0], [2], None, "AAAA"], [[1], [3], None, "AAAAAAAA"]],  # one element twice
        [[[0], [4], None, "AA=="]],  # too few bytes
        [[[-1], [5], None, "AAAAAAA="]],
        [[[0, 0], [4, 1], None, "AAAAAA=="]],
        [[[0], [4], None]],
        [],
    ],
)
def test_what_is_not_the_whole_tensor_is_refused(pieces):
    with pytest.raises((ValueError, TypeError)):
        LeafRow.parse(["w", "torch", "uint8", [4], pieces, None])
    assert LeafRow.parse(["w", "torch", "uint8", [4], [[[0], [4], None, "AAAAAA=="]], None]).pieces


def test_processes_that_do_not_fit_are_named():
    row = ["model/w", "torch", "uint8", [4], [[[0], [2], None, "AAA="]], None]
    other = [*row[:4], [[[2], [2], None, "AAA="]], None]
    refuse_incomplete(merge([row], [[other], [other]]))
    with pytest.raises(CheckpointError, match=r"'model/w' of shape \(4,\) is divided .* found 1 parts of it"):
        refuse_incomplete(merge([row], [[]]))
    with pytest.raises(CheckpointError, match=r"process 1 has a part of 'x', .* where process 0 has nothing"):
        merge([row], [[["x", *other[1:]]]])
    with pytest.raises(CheckpointError, match=r"process 2 has a part of 'model/w', .* process 0 has a uint8 of shape"):
        merge([row], [[other], [[*other[:3], [9], *other[4:]]]])
