"""Open a client for an address, and check its server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tensordb_data.errors import ConnectError
from tensordb_data.mongo.address import CONNECT_SECONDS, PATIENCE_MS, Address
from tensordb_data.mongo.transactions import APPLICATION

if TYPE_CHECKING:
    from pymongo import MongoClient

CONNECT_RETRIES = 5
"""How often an operation tries again, with growing pauses (together 3 s on average), when no connection can be made.

Newer versions of PyMongo take a refused connection for a server that is busy, and do not look for another primary then.
Their two attempts can end before they know that a server has died.
"""


def open_client(address: Address) -> MongoClient[dict[str, Any]]:
    """Connect, and make sure that what answers can carry a warehouse.

    A folder's server is joined, and left again by the client's `close`.

    Args:
        address: Where to.

    Returns:
        A client that waits for a server that is being started again. A client given by the user is returned as it is.

    Raises:
        ConnectError: Nothing answers within 4 s, or the `serverSelectionTimeoutMS` of the address; the credentials are
            refused, or the server is a standalone or too old.
        EmbeddedServerError: The folder's server cannot be started.
    """
    from pymongo import MongoClient, common
    from pymongo.errors import PyMongoError

    from tensordb_data.embedded.client import FolderClient
    from tensordb_data.mongo.server_check import check_server, explain

    if address.client is not None:
        if isinstance(address.client, MongoClient):
            check_server(address.client, address)
        return address.client  # type: ignore[no-any-return]
    options: dict[str, Any] = {"w": "majority", "appname": APPLICATION, "uuidRepresentation": "standard"}
    if hasattr(common, "MAX_ADAPTIVE_RETRIES") and "maxadaptiveretries=" not in str(address.uri).lower():
        options["maxAdaptiveRetries"] = CONNECT_RETRIES
    client: MongoClient[dict[str, Any]]
    if address.folder is not None:
        return FolderClient(address.folder, read_only=address.read_only, **options)
    uri = str(address.uri)
    given = uri.lower()
    if "serverselectiontimeoutms=" not in given:
        options["serverSelectionTimeoutMS"] = PATIENCE_MS
    if "connecttimeoutms=" not in given:
        options["connectTimeoutMS"] = int(CONNECT_SECONDS * 1000)
    try:
        client = MongoClient(uri, **options)
    except (PyMongoError, ValueError, OSError, RuntimeError, ImportError) as error:
        raise ConnectError(explain(error, address)) from None
    try:
        check_server(client, address)
    except BaseException:
        client.close()
        raise
    return client
