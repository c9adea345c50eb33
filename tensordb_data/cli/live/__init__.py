"""What happens in a warehouse, in the terminal."""
