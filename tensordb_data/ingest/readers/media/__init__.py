"""Readers of sound, video and volumes, each in a file of its own."""
