"""Divide samples into parts, by whole groups."""
