"""Other ways to decode the values of a field than its kind says: what `decode=` of a stream takes."""
