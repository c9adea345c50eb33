"""Call a model of any framework with arrays, and get an array. No framework is imported for it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tensordb_data.errors import QueryError

Compute = Callable[[Mapping[str, Any]], NDArray[Any]]


def name_of(model: Any) -> str:
    """A short name of a model or function."""
    name = getattr(model, "__name__", None)
    return name if isinstance(name, str) and name else type(model).__name__


def called(model: Any, field: str | None) -> Compute:
    """How a model makes vectors of a batch.

    Args:
        model: A function of the batch, or of the values of one field; a module of PyTorch or a model of Keras; or an
            object with a method `encode`, such as one of sentence-transformers.
        field: The one field that the model gets; None if it gets the batch.

    Raises:
        QueryError: It cannot be called, or takes one field and `inputs=` does not name it.
    """
    torch, keras = sys.modules.get("torch"), sys.modules.get("keras")
    encode = getattr(model, "encode", None)
    if callable(encode) and not isinstance(model, type):
        _need(field, "an object with encode()")
        return lambda batch: _array(encode(list(batch[str(field)])))
    if torch is not None and isinstance(model, torch.nn.Module):
        _need(field, "a module of PyTorch")
        return lambda batch: _of_torch(torch, model, batch[str(field)])
    if keras is not None and isinstance(model, keras.Model):
        _need(field, "a model of Keras")
        return lambda batch: _array(model(batch[str(field)], training=False))
    if not callable(model):
        raise QueryError(
            f"a model is a function of a batch, a module of PyTorch or a model of Keras; found {type(model).__name__}"
        )
    return lambda batch: _array(model(batch if field is None else batch[field]))


def _need(field: str | None, what: str) -> None:
    if field is None:
        raise QueryError(f'{what} takes one field: say which one, inputs="image"; or give a function of the batch')


def _of_torch(torch: Any, model: Any, values: Any) -> NDArray[Any]:
    if isinstance(values, list):
        raise QueryError(
            "the values of this field cannot be put into one tensor, since they are no numbers or differ in shape: give"
            " a transform= that makes arrays of one shape of them, or a function of the batch"
        )
    first = next(model.parameters(), None)
    tensor = torch.as_tensor(values)
    if first is not None:
        tensor = tensor.to(first.device)
    with torch.no_grad(), _evaluating(model):
        return _array(model(tensor))


@contextlib.contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _array(found: Any) -> NDArray[Any]:
    """What a model gave, as an array of NumPy."""
    if hasattr(found, "detach"):
        found = found.detach().cpu()
        found = found.float() if "bfloat16" in str(found.dtype) else found
    if hasattr(found, "numpy"):
        found = found.numpy()
    try:
        array: NDArray[Any] = np.asarray(found)
    except (TypeError, ValueError) as error:
        raise QueryError(f"the model must give an array, found a {type(found).__name__}: {error}") from None
    if array.dtype.kind == "V":  # bfloat16 of JAX
        array = array.astype(np.float32)
    return array
