"""Frozen sets: samples with their values, stored in blobs, as they were when they were frozen."""
