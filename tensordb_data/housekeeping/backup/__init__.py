"""Backups: a folder that holds the index and the blobs of a warehouse, and the way back."""
