"""Samples out: encoded bytes, and tables in memory."""
