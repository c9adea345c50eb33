"""Samples that exist get new values: of fields in the index, and blobs."""
