"""What is not as it should be in a warehouse: see `check`."""
