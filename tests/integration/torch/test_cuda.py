"""On a GPU: a save is one instant although its copy goes on beside the loop, and a run resumes as on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tensordb_data import TensorDB
from tensordb_data.checkpoint import cuda_copy
from tensordb_data.checkpoint.staging import StagingBuffer
from tensordb_data.tensors.tree import flatten
from tensordb_data.torch import QueryDataset, StepCheckpointer
from tests.integration.checkpoint.loops import fill

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(scope="module", autouse=True)
def _started() -> None:
    """What the driver opens for good, it opens before a test counts open files."""
    torch.randn(8, 8, device="cuda").matmul(torch.randn(8, 8, device="cuda")).cpu()
    torch.cuda.Stream().synchronize()
    torch.empty(8).pin_memory()


def state() -> dict[str, Any]:
    generator = torch.Generator("cuda").manual_seed(0)
    large = torch.randn(3_000, 4_000, device="cuda", generator=generator)
    return {
        "large": large,
        "across": large.T,
        "half": large[:500].to(torch.bfloat16),
        "eight": large[:7].to(torch.float8_e4m3fn),
        "mask": large[0] > 0,
        "complex": torch.complex(large[1], large[2]).conj(),
        "scalar": torch.tensor(5, device="cuda"),
        "empty": torch.empty(0, 3, device="cuda"),
        "host": torch.randn(50, 60),
        "step": torch.tensor(7.0),
        "array": np.arange(1_000.0),
        "text": "as it was",
        "bytes": b"fixed",
        "odd": [torch.full((3,), value, device="cuda", dtype=torch.int8) for value in range(20)],
    }


def tensors(of: Any) -> Iterator[Any]:
    for leaf in flatten({"of": of}).leaves:
        yield leaf.value


def as_bytes(value: Any) -> bytes:
    if not torch.is_tensor(value):
        return bytes(value) if isinstance(value, bytes) else np.asarray(value).tobytes()
    host = value.detach().resolve_conj().cpu().contiguous()
    return host.reshape(-1).view(torch.uint8).numpy().tobytes() if host.numel() else b""


def spoil(of: Any) -> None:
    """Changes everything, on the device behind what is queued there, on the host at once."""
    for value in tensors(of):
        if torch.is_tensor(value) and value.dtype == torch.bool:
            value.logical_not_()
        elif torch.is_tensor(value) and value.dtype == torch.float8_e4m3fn:
            value.copy_(torch.ones_like(value, dtype=torch.float32))
        elif torch.is_tensor(value):
            value.add_(1)
        elif isinstance(value, np.ndarray):
            value += 1


@pytest.mark.parametrize("room", [True, False])
def test_what_changes_right_afterwards_does_not_change_the_snapshot(
    room: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_copy, "_SPARE", 2 if room else 10**9)
    live, buffer = state(), StagingBuffer()
    buffer.reserve(flatten(live))
    for _ in range(5):
        torch.cuda._sleep(20_000_000)  # work that is queued: the state is what it will be when that is done
        spoil(live)
        expected = [as_bytes(value) for value in tensors(live)]
        torch.cuda._sleep(20_000_000)
        snapshot = buffer.take(flatten(live))
        spoil(live)
        buffer.wait()
        assert [bytes(data) for data in snapshot.data] == expected


def test_on_a_stream_of_the_users_own() -> None:
    live, buffer, own = state(), StagingBuffer(), torch.cuda.Stream()
    expected = [as_bytes(value) for value in tensors(live)]
    own.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(own):
        snapshot = buffer.take(flatten(live))
        spoil(live)
    buffer.wait()
    assert [bytes(data) for data in snapshot.data] == expected


def test_the_room_on_the_device_is_given_back_and_little_of_it_is_enough() -> None:
    live, buffer = {"large": torch.randn(64 << 20, device="cuda")}, StagingBuffer()
    buffer.reserve(flatten(live))
    before = torch.cuda.memory_allocated()
    snapshot = buffer.take(flatten(live))
    during = torch.cuda.memory_allocated()
    buffer.wait()
    assert during - before >= live["large"].nbytes and torch.cuda.memory_allocated() == before
    assert np.array_equal(np.frombuffer(snapshot.data[0], "f4"), live["large"].cpu().numpy())
    torch.cuda.empty_cache()
    filler = [torch.empty(torch.cuda.mem_get_info()[0] - (300 << 20), dtype=torch.uint8, device="cuda")]
    try:
        live["large"].mul_(2)
        full = torch.cuda.memory_allocated()
        snapshot = buffer.take(flatten(live))
        assert torch.cuda.memory_allocated() == full  # straight to the host
        assert np.array_equal(np.frombuffer(snapshot.data[0], "f4"), live["large"].cpu().numpy())
    finally:
        filler.clear()
        torch.cuda.empty_cache()


def test_a_state_that_moves_between_devices_and_sizes() -> None:
    buffer = StagingBuffer()
    for live in (state(), {"host": torch.randn(5_000_000)}, {"few": torch.randn(3, device="cuda")}, state()):
        snapshot = buffer.take(flatten(live))
        buffer.wait()
        assert [bytes(data) for data in snapshot.data] == [as_bytes(value) for value in tensors(live)]


def build() -> tuple[Any, Any, Any, Any]:
    torch.manual_seed(0)
    layers = [torch.nn.Linear(8, 64), torch.nn.BatchNorm1d(64), torch.nn.Dropout(0.5), torch.nn.Linear(64, 3)]
    model = torch.nn.Sequential(*layers).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 7), torch.amp.GradScaler("cuda")


def train(
    db: TensorDB, run: str, steps: int, *, restore: bool = False, workers: int = 0
) -> tuple[int, dict[int, float]]:
    dataset = QueryDataset(db.data.find({"dataset": "x"}), batch_size=16, shuffle=True, seed=0)
    loader = DataLoader(dataset, batch_size=None, num_workers=workers, pin_memory=True)
    model, optimizer, scheduler, scaler = build()
    losses: dict[int, float] = {}
    with StepCheckpointer(
        db, run=run, model=model, optimizer=optimizer, scheduler=scheduler, scaler=scaler, every=5, stream=loader
    ) as ckpt:
        start = ckpt.restore() if restore else 0
        for step, batch in enumerate(loader, start + 1):
            assert batch["image"].is_pinned()
            image, label = (batch[name].to("cuda", non_blocking=True) for name in ("image", "label"))
            with torch.autocast("cuda", dtype=torch.float16):
                loss = torch.nn.functional.cross_entropy(model(image), label)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
            ckpt.step()
            losses[step] = loss.item()
            if step == steps:
                break
    return start, losses


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_gives_the_losses_of_one_that_was_not_interrupted(db: TensorDB, workers: int) -> None:
    fill(db)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        _, whole = train(db, "whole", 30)
        _, first = train(db, "cut", 18, workers=workers)
        start, rest = train(db, "cut", 30, restore=True, workers=workers)
    finally:
        torch.use_deterministic_algorithms(False)
    assert start == 15
    assert first == {step: whole[step] for step in range(1, 19)}
    assert rest == {step: whole[step] for step in range(16, 31)}


def test_the_threads_that_make_batches_pin_them(db: TensorDB) -> None:
    rows = np.arange(600 * 5_000, dtype=np.int32).reshape(600, 5_000)
    with db.data.writer("rows") as writer:
        writer.add_many(row=rows, label=np.arange(600))
    dataset = QueryDataset(db.data.find({"dataset": "rows"}), batch_size=50, passes=20, shuffle=True, seed=0)
    addresses = set()
    for batch in DataLoader(dataset, batch_size=None, pin_memory=True):
        assert batch["row"].is_pinned() and batch["label"].is_pinned()
        addresses.add(batch["row"].data_ptr())
        torch.cuda._sleep(200_000)
        row, label = (batch[name].to("cuda", non_blocking=True) for name in ("row", "label"))
        del batch  # its memory is not used again before the copies have ended
        assert torch.equal(row[:, 0].div(5_000).long(), label)
    assert len(addresses) < 60


def test_saved_on_a_gpu_loaded_as_numpy_and_into_models_on_both(db: TensorDB) -> None:
    model = build()[0]
    id = db.params.save(model.state_dict(), run="r")
    found = db.params.find({"_id": id}).first()
    arrays = found.load(framework="numpy")
    assert all(np.array_equal(arrays[name], value.cpu().numpy()) for name, value in model.state_dict().items())
    for other in (build()[0], build()[0].cpu()):
        with torch.no_grad():
            other[0].weight.zero_()
        found.load_into(other)
        assert torch.equal(other[0].weight.cpu(), model[0].weight.cpu())
