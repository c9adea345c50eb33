"""What the sinks have in common: the warehouse of a task, and the report of all tasks."""

from __future__ import annotations

import abc
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ray.data.block import Block
from ray.data.datasource import Datasink, WriteResult

from tensordb_data.api.database import TensorDB
from tensordb_data.common.html import Report
from tensordb_data.errors import ConnectError, QueryError
from tensordb_data.export.portable import PortableAddress
from tensordb_data.warehouse.context import Warehouse

log = logging.getLogger("tensordb_data")


@dataclass(frozen=True)
class SinkReport(Report):
    """What a sink has done, over all tasks: `sink.report`."""

    written: int
    """Samples that were added, or annotated."""
    skipped: int = 0
    """Rows whose sample was there: they came twice, or a task was run again that had written them before it died."""
    unknown: tuple[str, ...] = ()
    """Ids that no sample has, the first thousand of them."""
    unknown_count: int = 0
    """How many of them there are."""


class Sink(Datasink, abc.ABC):  # type: ignore[misc]
    """A sink of Ray Data. It travels to the tasks, and holds no secret.

    Args:
        db: The warehouse.
        credentials: `"env:NAME"`, or None for `$TENSORDB`.
    """

    def __init__(self, db: TensorDB | PortableAddress, credentials: str | None) -> None:
        super().__init__()
        check_credentials(credentials)
        if not isinstance(db, (TensorDB, PortableAddress)):
            raise QueryError(
                f"expected a TensorDB or its address, db.address; found a {type(db).__name__}: the address of a server"
                " may hold a password, which Ray would store"
            )
        self._address = db.address if isinstance(db, TensorDB) else db
        self._credentials = credentials
        self.report: SinkReport | None = None
        """What was done; None until `write_datasink` has returned."""

    def get_name(self) -> str:
        return "TensorDB"

    @property
    def supports_distributed_writes(self) -> bool:
        # A warehouse in a folder serves one machine: that of the driver.
        return not self._address.in_folder

    def on_write_start(self, schema: Any = None) -> None:
        """Nothing: a task does all that it needs."""

    def write(self, blocks: Iterable[Block], ctx: Any) -> SinkReport:
        return self.store(self._address.open(self._credentials), blocks)

    @abc.abstractmethod
    def store(self, warehouse: Warehouse, blocks: Iterable[Block]) -> SinkReport:
        """Store the rows of some blocks. It may be called again with the same rows, in another process."""

    def on_write_complete(self, write_result: WriteResult[SinkReport]) -> None:
        parts = write_result.write_returns
        unknown = [id for part in parts for id in part.unknown]
        self.report = SinkReport(
            sum(part.written for part in parts), sum(part.skipped for part in parts), tuple(unknown[:1000]),
            sum(part.unknown_count for part in parts),
        )  # fmt: skip
        if self.report.skipped:
            log.warning("%d of %d rows were skipped, because their samples are there: rows came twice, or a task ran "
                        "again", self.report.skipped, self.report.written + self.report.skipped)  # fmt: skip
        if unknown:
            log.warning("no sample has %d of the ids that were to be annotated; the first is %s",
                        self.report.unknown_count, unknown[0])  # fmt: skip


def check_credentials(credentials: str | None) -> None:
    """Refuse a password in an option: Ray would store it, and show it.

    Raises:
        ConnectError: It is not the name of a variable.
    """
    if credentials is not None and not (isinstance(credentials, str) and credentials.startswith("env:")):
        raise ConnectError("credentials= of Ray is 'env:NAME', the name of a variable that each node has, and never the"
                           " address itself, which Ray would store")  # fmt: skip
