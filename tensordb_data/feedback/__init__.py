"""Feedback: what a run finds out about single samples, such as their losses."""
