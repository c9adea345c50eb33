"""The format of segments: many blobs in one object."""
