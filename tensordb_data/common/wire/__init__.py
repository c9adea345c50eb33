"""Formats of records in files, read without the libraries of those who write them."""
