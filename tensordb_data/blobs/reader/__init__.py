"""Reading many blobs at once: local gathers, downloads, the cache on disk."""
