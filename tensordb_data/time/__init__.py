"""Frozen sets are made, compared and restored; and who has seen which samples."""
