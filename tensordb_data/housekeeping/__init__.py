"""Garbage collection, the check of all that is stored, and the rebuild of a lost index."""
