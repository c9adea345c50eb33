"""Talking to a MongoDB server: addresses, clients, retries, claims."""
