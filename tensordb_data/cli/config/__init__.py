"""The settings of the command line, and the command that shows and changes them."""
