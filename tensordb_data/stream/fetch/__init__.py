"""From rows of a plan to values."""
