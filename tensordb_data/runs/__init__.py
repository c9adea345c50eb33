"""Runs: a document each, with its attempts and the lease of the one saver that it has at a time."""
