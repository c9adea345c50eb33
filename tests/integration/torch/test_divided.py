"""Models divided over a mesh of two dimensions: of each element one process stores one copy."""

from __future__ import annotations

import json
import sys

from tensordb_data.tensors.pieces import Box, is_whole
from tests import warm

# Four processes that exchange nothing, one after the other: torch keeps the meshes of a process.
PROGRAM = """
import json, os
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.testing._internal.distributed.fake_pg import FakeStore
from tensordb_data import CheckpointError
from tensordb_data.tensors.divided import divided_like, with_local_pieces
from tensordb_data.tensors.pieces import LocalPiece

def replicated(model):
    fully_shard(model, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp_replicate", "dp_shard")))

def tensor_parallel(model):
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    parallelize_module(model, mesh["tp"], {"0": ColwiseParallel()})
    fully_shard(model, mesh=mesh["dp"])

def look(divide):
    model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.BatchNorm1d(8))
    divide(model)
    state = model.state_dict()
    local = with_local_pieces(state)
    assert local._metadata == state._metadata and not any(isinstance(one, DTensor) for one in local.values())
    for name, value in state.items():
        if isinstance(value, DTensor):
            made = divided_like(value, torch.ones_like(value.to_local()))
            assert made.shape == value.shape and made.placements == value.placements
    parts = {name: one for name, one in local.items() if isinstance(one, LocalPiece)}
    found = {name: [one.whole, one.box, tuple(one.value.shape)] for name, one in parts.items()}
    print(json.dumps([divide.__name__, found]), flush=True)

for rank in range(4):
    pid = os.fork()
    if pid:
        assert os.waitpid(pid, 0)[1] == 0
        continue
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=4)
    look(replicated)
    look(tensor_parallel)
    mesh = init_device_mesh("cpu", (4,))
    assert type(with_local_pieces([distribute_tensor(torch.ones(3), mesh)])[0]) is torch.Tensor
    try:
        with_local_pieces(DTensor.from_local(torch.ones(3), mesh, [Partial()]))
    except CheckpointError as error:
        assert "has no values of its own" in str(error)
    else:
        raise AssertionError
    os._exit(0)
"""


def test_each_element_is_stored_once():
    done = warm.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=100)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    for kind, pieces in (("replicated", 2), ("tensor_parallel", 4)):
        ranks = [found for name, found in lines if name == kind]
        assert len(ranks) == 4 and set(ranks[0]) >= {"0.weight", "0.bias", "1.weight"}
        for name, (whole, *_) in ranks[0].items():
            boxes = [(Box(*map(tuple, found[name][1])), found[name][2]) for found in ranks if found[name][1]]
            assert is_whole(whole, {box for box, _ in boxes}), (kind, name, boxes)
            assert all(list(box.shape) == local for box, local in boxes)
            # the meshes of two tensor parallel processes do not know of each other: both say the same
            assert len(boxes) == pieces
