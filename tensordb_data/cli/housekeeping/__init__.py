"""The commands that look after what is stored."""
