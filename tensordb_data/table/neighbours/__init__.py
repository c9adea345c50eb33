"""Nearest neighbours among the vectors of a field: exact, and in bounded memory."""
