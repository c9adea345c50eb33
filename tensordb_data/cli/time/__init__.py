"""Commands for frozen sets."""
