"""Runs of other trackers: their files are read without their libraries, and become runs and rows."""
