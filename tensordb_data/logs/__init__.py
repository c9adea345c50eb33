"""Logs of runs: written at training speed, read as tables, series and plots, and exported."""
