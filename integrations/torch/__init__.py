"""PyTorch: datasets over queries, and training state saved every N steps."""

from tensordb_data.errors import MissingExtraError

try:
    import torch
except ImportError as error:
    raise MissingExtraError("tensordb_data.torch needs PyTorch: pip install 'tensordb-data[torch]'") from error

from tensordb_data.stream.transform.libraries.vision import VisionTransform
from tensordb_data.torch.dataset import QueryDataset
from tensordb_data.torch.learner import Learner
from tensordb_data.torch.map_dataset import MapDataset
from tensordb_data.torch.step_checkpointer import StepCheckpointer

__all__ = ["Learner", "MapDataset", "QueryDataset", "StepCheckpointer", "VisionTransform"]

del torch
