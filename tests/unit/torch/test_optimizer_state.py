"""The state of an optimizer by names, as torch's own functions gather it for a sharded model, and by numbers."""

from __future__ import annotations

import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

from tensordb_data.torch.optimizer_state import by_number, in_order_of, parameter_names


def test_a_state_by_names_is_restored_as_one_by_numbers():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
    groups = [{"params": model[1].parameters(), "lr": 0.5}, {"params": model[0].parameters()}]
    optimizer = torch.optim.Adam(groups, lr=0.1)
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    gathered = get_optimizer_state_dict(model, optimizer)
    assert "0.weight" in gathered["state"]
    state, names = by_number(gathered, None)
    other = torch.optim.Adam(model.parameters(), lr=0.5)  # one group, in another order
    found = in_order_of(optimizer, parameter_names(model, optimizer), state, names, "it")
    optimizer.load_state_dict(found)
    again = get_optimizer_state_dict(model, optimizer)
    for name, moments in gathered["state"].items():
        assert all(torch.equal(value, again["state"][name][key]) for key, value in moments.items())
    assert [group["lr"] for group in again["param_groups"]] == [0.5, 0.1]
    numbered = other.state_dict()
    assert by_number(numbered, [["a"]]) == (numbered, [["a"]])
