"""The embedded server: a real mongod for a warehouse folder, shared by its processes, gone with the last of them."""

from tensordb_data.embedded.session import Session, join

__all__ = ["Session", "join"]
