"""What happens in a warehouse: what its index tells at one moment, and what has changed between two."""
