"""Random numbers of PyTorch that depend on a key alone, in one thread, with PyTorch's generator left as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_MAKERS = {torch.rand_like: torch.rand, torch.randn_like: torch.randn}
_DRAWS: frozenset[Callable[..., Any]] = frozenset(
    getattr(owner, name)
    for owner, names in (
        (torch, "rand randn randint randperm normal bernoulli multinomial poisson binomial"),
        (torch, "_standard_gamma _sample_dirichlet"),
        (
            torch.Tensor,
            "uniform_ normal_ random_ bernoulli_ bernoulli exponential_ geometric_ cauchy_ log_normal_ multinomial",
        ),
    )
    for name in names.split()
)
_COMPOSED = ("dropout", "rrelu", "kaiming_", "xavier_", "orthogonal_", "sparse_", "gumbel_softmax")
"""Parts of names of functions that draw within, where this mode does not see it."""


class _KeyedOperators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The same for the operators that a function of PyTorch is composed of. It is slower."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._generator = generator

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        takes = any(argument.name == "generator" for argument in func._schema.arguments)
        if takes and kwargs.get("generator") is None and _on_cpu(args, kwargs):
            kwargs = {**kwargs, "generator": self._generator}
        return func(*args, **kwargs)


class KeyedRandom(TorchFunctionMode):
    """While it is entered, what this thread draws from PyTorch's own generator comes from a generator of the key.

    PyTorch's generator belongs to the whole process: to seed it for each sample would need a lock around every
    transform, and a training loop that draws from it meanwhile would get its numbers, and change them. This mode holds
    for one thread, and needs no lock. Draws on another device, or with a `generator`, are not changed.
    """

    def __init__(self, key: int) -> None:
        super().__init__()
        self._key = key
        self._generator: torch.Generator | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _MAKERS:
            like = args[0] if args else kwargs["input"]
            options = {
                "dtype": kwargs.get("dtype") or like.dtype,
                "device": kwargs.get("device") or like.device,
                "requires_grad": kwargs.get("requires_grad", False),
            }
            func, args, kwargs = _MAKERS[func], (tuple(like.shape),), options
        elif func is torch.randint_like:
            like = args[0] if args else kwargs.pop("input")
            options = {"dtype": kwargs.get("dtype") or like.dtype, "device": kwargs.get("device") or like.device}
            bounds = tuple(kwargs[name] for name in ("low", "high") if name in kwargs)
            func, args, kwargs = torch.randint, (*args[1:], *bounds, tuple(like.shape)), options
        if func in _DRAWS and kwargs.get("generator") is None and _on_cpu(args, kwargs):
            kwargs = {**kwargs, "generator": self._drawn_from()}
        elif any(part in getattr(func, "__name__", "") for part in _COMPOSED):
            with _KeyedOperators(self._drawn_from()):
                return func(*args, **kwargs)
        return func(*args, **kwargs)

    def _drawn_from(self) -> torch.Generator:
        if self._generator is None:
            self._generator = torch.Generator()
            self._generator.manual_seed(self._key)
        return self._generator


def _on_cpu(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    device = kwargs.get("device")
    if device is not None:
        return torch.device(device).type == "cpu"
    return all(value.device.type == "cpu" for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
