"""Parameter sets: saved, loaded, pruned."""
