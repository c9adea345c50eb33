"""A checkpoint that knows which samples its run had received."""

from __future__ import annotations

from tensordb_data.params import parameter_set
from tensordb_data.time.delivered import Delivered, delivered


class ParameterSet(parameter_set.ParameterSet):
    """A checkpoint: saved parameters, and the metrics that they were saved with: `best["val_acc"]`."""

    __slots__ = ()

    def samples(self) -> Delivered:
        """The samples that had been delivered to its run up to its step, over all attempts that led to it.

        It is exact where the checkpoints of the run tell it, by the plans and positions that they have: always if the
        run was trained on a frozen set, or on data that has not changed. Otherwise `exact` is False, and `notes` says
        why. A sample that was deleted in mid-pass, before its turn, counts.

        Raises:
            NotFoundError: It says nothing of its data: it was saved without a stream.
        """
        return delivered(self._warehouse, self._doc)
