"""Queries and updates, as values."""
