"""Where objects are kept: files, S3, GCS, Azure, GridFS, memory."""
