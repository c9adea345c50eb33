"""TensorFlow and Keras: datasets over queries, and a callback that saves every N steps."""

from tensordb_data.errors import MissingExtraError

try:
    import tensorflow
except ImportError as error:
    raise MissingExtraError("tensordb_data.tf needs TensorFlow: pip install 'tensordb-data[tf]'") from error

from tensordb_data.tf.checkpoint import StepCheckpoint
from tensordb_data.tf.dataset import query_dataset

__all__ = ["StepCheckpoint", "query_dataset"]

del tensorflow
