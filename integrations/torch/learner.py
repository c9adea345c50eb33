"""Learner: a module and its optimizer, for a Trainer that never ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from tensordb_data.params.apply import check_torch, into_torch
from tensordb_data.torch.convert import to_tensors
from tensordb_data.torch.optimizer_state import in_order_of, parameter_names
from tensordb_data.torch.restore import all_or_none, check_kinds, kind_of


class Learner:
    """A PyTorch module and its optimizer, for `tensordb_data.continuous.Trainer`.

    Args:
        model: The module.
        optimizer: The optimizer of the module.
        loss: Called with the module and a batch of tensors. It returns the loss to minimise, or a tuple of the loss and
            a dict of metrics.
    """

    def __init__(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[Any, Mapping[str, Any]], Any]
    ) -> None:
        self.model, self.optimizer, self._loss = model, optimizer, loss

    def step(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Make one update of the optimizer. Returns the loss and the metrics."""
        result = self._loss(self.model, to_tensors(dict(batch)))
        value, metrics = result if isinstance(result, tuple) else (result, {})
        self.optimizer.zero_grad()
        value.backward()
        self.optimizer.step()
        return {"loss": value.item(), **metrics}

    def state_dict(self) -> dict[str, Any]:
        """Parameters and optimizer, with its class and the names of its parameters."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "about": {
                "kinds": {"optimizer": kind_of(self.optimizer)},
                "parameters": parameter_names(self.model, self.optimizer),
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a state.

        Raises:
            StateError: The state does not fit; nothing was changed.
        """
        label = "the saved state"
        check_torch(self.model, state["model"], label)
        about = state.get("about", {})
        check_kinds({"optimizer": self.optimizer}, about.get("kinds", {}), label)
        names = parameter_names(self.model, self.optimizer)
        ordered = in_order_of(self.optimizer, names, state["optimizer"], about.get("parameters"), label)
        with all_or_none(label) as load:
            load("optimizer", self.optimizer, ordered)
            into_torch(self.model, state["model"], label)
