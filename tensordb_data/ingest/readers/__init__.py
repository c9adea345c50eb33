"""The readers of this library: each makes a source of files or of a value. See `tensordb_data.ingest.source`."""
