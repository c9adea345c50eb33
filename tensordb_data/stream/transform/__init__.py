"""The user's function, and columns for batches."""
