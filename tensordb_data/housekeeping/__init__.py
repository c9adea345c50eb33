"""Housekeeping: what nothing refers to any more is removed."""
