"""Encoded sound, video and volumes: stored byte for byte, and decoded when they are read."""
