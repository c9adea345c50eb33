"""Batches to the loop."""
