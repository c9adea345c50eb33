"""How the transforms of each library are called: with which fields, and with which random numbers."""
