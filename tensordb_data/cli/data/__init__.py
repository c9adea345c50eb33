"""Commands about samples."""
