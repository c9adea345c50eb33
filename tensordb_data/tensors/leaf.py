"""One tensor of a state: what it is, its bytes on the host, and how to build it again from bytes.

torch is never imported here: if a state holds torch tensors, the caller has imported it.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from tensordb_data.errors import CheckpointError, MissingExtraError
from tensordb_data.tensors.pieces import Box, LocalPiece

Kind = Literal["torch", "numpy", "scalar", "bytes"]
Framework = Literal["auto", "numpy", "torch"]


class PieceOf(NamedTuple):
    """Which part of which tensor a leaf is."""

    whole: tuple[int, ...]
    """The shape of the tensor."""
    box: Box | None
    """The part; None if this process stores none."""


class Leaf(NamedTuple):
    """A tensor, array, numpy scalar or byte string found in a state.

    Attributes:
        name: Its place, unique within the state: ``"model/fc.weight"``.
        kind: What it was: ``"torch"``, ``"numpy"``, ``"scalar"`` (a numpy scalar) or ``"bytes"``.
        dtype: ``"float32"`` and so on for torch, numpy's ``dtype.str`` (``"<f4"``) otherwise.
        shape: Its shape; ``(n,)`` for bytes.
        nbytes: Its size in C order.
        value: The tensor itself, not a copy.
        identity: Equal for two leaves that are the same memory; None if that does not matter.
        fixed: Whether nobody can change it, so that it needs no copy: an array over the memory of a `bytes`.
        piece: Of which tensor it is a part, if it is a `LocalPiece`.
    """

    name: str
    kind: Kind
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    value: Any
    identity: Any = None
    fixed: bool = False
    piece: PieceOf | None = None

    @property
    def device(self) -> Any:
        """The CUDA device that it is on, if it is."""
        return self.value.device if self.kind == "torch" and self.value.is_cuda else None

    @property
    def signature(self) -> tuple[Kind, str, tuple[int, ...], bool, Any]:
        """What decides how its copy is laid out."""
        return (self.kind, self.dtype, self.shape, self.fixed, self.device)


def as_leaf(value: Any, name: str, where: Callable[[], str]) -> Leaf | None:
    """Describes a value as a leaf; None if it is not one.

    Raises:
        CheckpointError: A tensor without bytes of its own: meta, sparse, distributed, quantized, object dtype.
    """
    if isinstance(value, LocalPiece):
        return _piece_leaf(value, name, where)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _torch_leaf(torch, value, name, where)
    if isinstance(value, (bytes, bytearray)):
        return Leaf(name, "bytes", "|u1", (len(value),), len(value), bytes(value))
    if isinstance(value, np.generic):
        return _numpy_leaf(np.asarray(value), name, where, "scalar")
    if isinstance(value, np.ndarray):
        return _numpy_leaf(value, name, where, "numpy")
    if hasattr(value, "__array__") and not isinstance(value, type):
        return _numpy_leaf(np.asarray(value), name, where, "numpy")
    return None


def host_bytes(leaf: Leaf) -> memoryview:
    """The bytes of a leaf in C order, on the host; copied only if they do not lie there so."""
    if leaf.nbytes == 0:
        return memoryview(b"")
    if leaf.kind == "bytes":
        return memoryview(leaf.value)
    if leaf.kind == "torch":
        torch = sys.modules["torch"]
        tensor = leaf.value.detach().resolve_conj().resolve_neg().cpu().contiguous()
        data: memoryview = tensor.reshape(-1).view(torch.uint8).numpy().data
        return data
    return np.ascontiguousarray(leaf.value).reshape(-1).view(np.uint8).data


def copy_into(leaf: Leaf, target: Any) -> None:
    """Copies a torch or numpy leaf into the view of host memory that `target_view` made for it."""
    if leaf.kind == "torch":
        target.copy_(leaf.value.detach())
    else:
        np.copyto(target, leaf.value)


def target_view(leaf: Leaf, memory: np.ndarray[Any, Any]) -> Any:
    """A torch tensor or numpy array of the leaf's dtype and shape over `memory` (uint8, its size, aligned)."""
    return build(leaf.kind if leaf.kind != "scalar" else "numpy", leaf.dtype, leaf.shape, memory, "auto", leaf.name)


def build(
    kind: Kind, dtype: str, shape: tuple[int, ...], memory: np.ndarray[Any, Any], framework: Framework, name: str
) -> Any:
    """A value over `memory` (uint8, owned, writable), as the kind it was saved from or for the framework asked for.

    Raises:
        CheckpointError: The dtype does not exist in the framework asked for.
        MissingExtraError: `framework` is ``"torch"`` and torch is not installed.
    """
    if kind == "bytes":
        return memory.tobytes()
    if kind == "torch" and framework != "numpy" and (framework == "torch" or "torch" in sys.modules):
        return _build_torch(dtype, shape, memory, name)
    array = (
        memory.view(_numpy_dtype(dtype, name)).reshape(shape)
        if memory.size
        else np.empty(shape, _numpy_dtype(dtype, name))
    )
    if kind == "scalar":
        return array[()]
    if framework == "torch":
        return import_torch().from_numpy(array)
    return array


def nbytes_of(dtype: str, shape: Sequence[int]) -> int | None:
    """The bytes of a leaf with that dtype and shape; None if the dtype does not tell them here.

    Raises:
        ValueError: No tensor is so: a dimension is negative or no number, or the dtype holds Python objects.
    """
    if not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"the shape {shape!r}")
    if (named := _BITS.match(dtype)) is not None:
        size = int(named[1] or 8) // 8
    else:
        try:
            found = np.dtype(dtype)
        except (TypeError, ValueError, SyntaxError):
            return None
        if found.hasobject:
            raise ValueError(f"the dtype {dtype!r}")
        size = found.itemsize
    if math.prod(max(1, n) for n in shape) * max(1, size) >= 2**62:  # even where another dimension is 0
        raise ValueError(f"the shape {shape!r} of {dtype}")
    return math.prod(shape) * size


_BITS = re.compile(r"bool$|(?:u?int|b?float|complex)(8|16|32|64|128)(?:_e\w+)?$")
"""The dtypes of torch and ml_dtypes whose names tell their bits."""


def import_torch() -> Any:
    """torch, or an error that says how to get it."""
    try:
        import torch
    except ImportError:
        raise MissingExtraError("This needs PyTorch: pip install 'tensordb-data[torch]'.") from None
    return torch


def _build_torch(dtype: str, shape: tuple[int, ...], memory: np.ndarray[Any, Any], name: str) -> Any:
    torch = import_torch()
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype):
        raise CheckpointError(
            f"Tensor {name!r} has the dtype torch.{dtype}, which torch {torch.__version__} does not know."
        )
    return torch_view(dtype, shape, torch.from_numpy(memory)) if memory.size else torch.empty(shape, dtype=kind)


def torch_view(dtype: str, shape: tuple[int, ...], memory: Any) -> Any:
    """A tensor over `memory`: a uint8 tensor of its size, on any device, aligned."""
    return memory.view(getattr(sys.modules["torch"], dtype)).reshape(shape)


def _numpy_dtype(dtype: str, name: str) -> np.dtype[Any]:
    try:
        return np.dtype(dtype)
    except TypeError:
        pass
    found = getattr(_ml_dtypes(), dtype, None)
    if found is None:
        raise CheckpointError(
            f"Tensor {name!r} has the dtype {dtype}, which numpy does not have. Import torch before loading, "
            "pass load(framework='torch'), or install ml_dtypes."
        )
    return np.dtype(found)  # type: ignore[no-any-return]


def _ml_dtypes() -> Any:
    try:
        import ml_dtypes
    except ImportError:
        return None
    return ml_dtypes


def _piece_leaf(held: LocalPiece, name: str, where: Callable[[], str]) -> Leaf | None:
    if held.box is None:
        held = LocalPiece(held.value.reshape(-1)[:0], held.whole, None)
    leaf = as_leaf(held.value, name, where)
    return None if leaf is None else leaf._replace(piece=PieceOf(held.whole, held.box))


def _torch_leaf(torch: Any, value: Any, name: str, where: Callable[[], str]) -> Leaf:
    if type(value).__module__.startswith("torch.distributed"):
        raise CheckpointError(
            f"{where()} is a distributed tensor ({type(value).__name__}). Gather it first: "
            "torch.distributed.checkpoint.state_dict.get_model_state_dict(model, "
            "options=StateDictOptions(full_state_dict=True))."
        )
    if hasattr(type(value), "__tensor_flatten__"):
        raise CheckpointError(
            f"{where()} is a {type(value).__name__}, a tensor made of others (quantised, say), which would come back "
            "as a plain one. Pass its parts, or the tensor before it was quantised."
        )
    if torch.nn.parameter.is_lazy(value):
        raise CheckpointError(
            f"{where()} is of a lazy module that has seen no input yet, and has no values to save. Call the model once."
        )
    if value.is_meta:
        raise CheckpointError(
            f"{where()} is on the meta device and has no values to save. Materialise the model first."
        )
    if value.layout is not torch.strided:
        raise CheckpointError(f"{where()} is a {value.layout} tensor. Pass its to_dense(), or its indices and values.")
    if value.is_quantized:
        raise CheckpointError(f"{where()} is a quantized tensor. Pass its int_repr() and its scales.")
    nbytes, shape, dtype = value.nbytes, tuple(value.shape), value.dtype
    identity = (value.data_ptr(), dtype, shape, value.stride(), value.device) if nbytes else None
    return Leaf(name, "torch", str(dtype).removeprefix("torch."), shape, nbytes, value, identity)


def _numpy_leaf(value: np.ndarray[Any, Any], name: str, where: Callable[[], str], kind: Kind) -> Leaf:
    dtype = value.dtype
    text = dtype.str
    if dtype.kind in "OV":
        # bfloat16 and float8 of ml_dtypes (Keras, JAX) are void types to numpy, but have names of their own
        if dtype.kind == "O" or dtype.names is not None or dtype.type.__module__ != "ml_dtypes":
            raise CheckpointError(
                f"{where()} is a numpy array of dtype {dtype}: only numbers, bool, dates and text can be saved."
            )
        text = dtype.name
    identity = None
    if value.nbytes and kind == "numpy":
        identity = (value.__array_interface__["data"][0], text, value.shape, value.strides)
    fixed = kind == "numpy" and value.flags.c_contiguous and type(_owner(value)) is bytes
    return Leaf(name, kind, text, value.shape, value.nbytes, value, identity, fixed)


def _owner(value: Any) -> Any:
    """Whose memory an array shows."""
    while isinstance(value, np.ndarray):
        value = value.base
    return value
