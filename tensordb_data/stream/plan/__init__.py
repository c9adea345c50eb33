"""Reading the index into columns."""
