"""Frozen sets, for users."""
