"""Samples out: as tables in memory, and as files in a folder."""
