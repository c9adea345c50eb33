"""What stands between a client and a server, and fails as it is told to."""
