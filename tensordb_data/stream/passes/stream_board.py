"""StreamBoard: the part of the board of several ranks that is about one stream."""

from __future__ import annotations

import json
import os
import platform
from typing import TYPE_CHECKING

import xxhash

from tensordb_data.common.boards import Board
from tensordb_data.common.system.private import make_folder
from tensordb_data.stream.spec import StreamSpec
from tensordb_data.stream.state import State

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse


class StreamBoard:
    """Where ranks agree on one stream. None of them waits for another one.

    Streams alike, of one query, order and seed, are told apart by their number within a process. So a stream that one
    rank has for itself alone does not mix up those that all have.

    Args:
        board: The board of the ranks.
        warehouse: The warehouse of the stream.
        spec: The spec of the stream.
    """

    def __init__(self, board: Board, warehouse: Warehouse, spec: StreamSpec) -> None:
        self._board, self._warehouse, self._world = board, warehouse, spec.world_size
        name = json.dumps([warehouse.project, spec.world_size, State().to_doc(spec)])
        alike = xxhash.xxh3_64_hexdigest(name.encode())
        self._key = f"{alike}/{board.number(alike)}"

    @property
    def carries(self) -> bool:
        """See `Board`."""
        return self._board.carries

    def agree(self, what: str, value: str) -> str:
        """The value of the first rank that has come here."""
        return self._board.agree(f"{self._key}/{what}", value)

    def share_a_cache(self) -> bool:
        """Whether all ranks surely read plans from one folder. Those that come first do not know it yet."""
        folder = self._warehouse.cache_dir
        if folder is None:
            return False
        if os.environ.get("LOCAL_WORLD_SIZE") == str(self._world):
            return True
        make_folder(folder)
        there = os.stat(folder)
        name = xxhash.xxh3_64_hexdigest(f"{platform.node()} {there.st_dev} {there.st_ino}".encode())
        return self._board.arrive(f"{self._key}/cache/{name}") == self._world
