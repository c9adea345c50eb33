"""The facade: `TensorDB`, `Selection` and the five collections."""
