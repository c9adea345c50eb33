"""What is the same for all sources: what identifies a row, what has changed, and how it is written."""
