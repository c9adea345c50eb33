"""Samples in: the writer, its commits, updates, compaction."""
