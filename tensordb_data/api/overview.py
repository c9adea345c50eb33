"""What a `TensorDB` tells of the whole warehouse."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING

from tensordb_data.common.html import Html, Shown
from tensordb_data.export.portable import PortableAddress
from tensordb_data.table.notebook import warehouse_html
from tensordb_data.table.storage import Storage, projects, storage

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse


class Overview(Shown, abc.ABC):
    """The methods of a `TensorDB` that look at the whole warehouse."""

    @property
    @abc.abstractmethod
    def warehouse(self) -> Warehouse:
        """The context: index and blobs."""

    @property
    def address(self) -> PortableAddress:
        """Where this warehouse is, as a value that pickles and holds no user name, password or key.

        `TensorDB(address)` opens it in another process or on another machine, with the same project, blobs, roots and
        cache. The login comes from `$TENSORDB` there, or from `credentials="env:NAME"`. A warehouse in a folder is
        opened on its own machine only. (A pickled `TensorDB` or `Selection` holds the password.)

        Raises:
            UnsupportedError: This TensorDB was made with `client=`.
        """
        return PortableAddress.of(self.warehouse)

    def _html(self) -> Html:
        return warehouse_html(self.warehouse)

    def projects(self) -> list[str]:
        """The names of the projects of this warehouse that have anything in them, in order."""
        return projects(self.warehouse)

    def storage(self) -> Storage:
        """How many bytes there are of what: blobs by dataset and by run, garbage, the cache, the roots, the index.

        It is a table when it is printed. All of it is known from the index and the folder of the cache.
        """
        return storage(self.warehouse)
