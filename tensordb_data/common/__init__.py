"""Helpers that know neither MongoDB nor blobs."""
