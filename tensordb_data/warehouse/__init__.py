"""The context of everything above: the index and the blobs of one project."""
