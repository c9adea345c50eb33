"""The formats of an export: each writes shards of samples, and what belongs to all of them at the end."""
