"""Small pictures of samples."""
