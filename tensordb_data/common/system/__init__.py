"""What differs between operating systems: each thing in one place, with the fastest way that the system at hand has."""
