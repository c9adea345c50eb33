"""The log of changes: what was done to the samples of a dataset, by whom, with the values that were there before."""
