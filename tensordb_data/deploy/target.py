"""Where parameters are deployed to: a folder of numbered versions, or a function of the process itself."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from bson import ObjectId

from tensordb_data.deploy import bundle
from tensordb_data.deploy.versions import Versions
from tensordb_data.errors import CorruptBlobError, StorageError

log = logging.getLogger("tensordb.continuous")

About = Mapping[str, Any]
"""The fields of a parameter set."""


class Target(Protocol):
    """A place where one set is live at each moment, and the previous one is still available."""

    @property
    def name(self) -> str:
        """The name of the target in the warehouse."""
        ...

    def current(self) -> tuple[About, int | None] | None:
        """The set that is live, and its version."""
        ...

    @property
    def can_go_back(self) -> bool:
        """Whether a set before it is at hand."""
        ...

    def stage(self, state: Any, about: About) -> Any:
        """Bring a set to the target without making it live; returns its state as it would be served."""
        ...

    def swap(self) -> int | None:
        """Make the staged set live; returns its version. If this fails, the previous set stays live."""
        ...

    def back(self) -> None:
        """Undo the swap."""
        ...

    def finalize(self) -> None:
        """Note that the swap is final, and remove versions that are not needed any more."""
        ...

    def close(self) -> None:
        """Release everything."""
        ...


class FolderTarget:
    """Numbered versions in a folder; see `versions`."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._versions = Versions(folder, keep)
        self.name = f"{socket.gethostname()}:{self._versions.folder}"
        self._before: int | None = None
        self._repair()

    def current(self) -> tuple[About, int | None] | None:
        number = self._versions.current
        return None if number is None else (bundle.about(self._versions.path(number)), number)

    @property
    def can_go_back(self) -> bool:
        return self._versions.previous is not None

    def stage(self, state: Any, about: About) -> Any:
        staged = self._versions.stage()
        bundle.write(staged, state, about)
        try:
            return bundle.read(staged).state
        except CorruptBlobError as error:  # this disk is to blame, and not the set
            raise StorageError(f"what was written is not what can be read: {error}") from error

    def swap(self) -> int | None:
        self._before = self._versions.current
        return self._versions.adopt()

    def back(self) -> None:
        failed = self._versions.current
        before = self._before if self._before is not None else self._versions.previous
        if before is not None:
            self._versions.lead(before)
        if failed is not None and failed != before:  # servers that take the highest number must not find it
            self._versions.remove(failed)
        if before is None:  # last: a version without a link would be taken for one whose link was lost
            self._versions.withdraw()
        self._before = None

    def finalize(self) -> None:
        self._before = None
        self._versions.retire()

    def close(self) -> None:
        self._versions.close()

    def _repair(self) -> None:
        """Leads back to the version before one that the disk has damaged, and removes what was never adopted.

        If the link was lost, it is made again, and leads to the newest whole version. No version is removed then.
        """
        if self._versions.current is None:
            for number in reversed(self._versions.numbers):
                if self._damage(number) is None:
                    log.warning("the link in %s was lost; it leads to version %d", self._versions.folder, number)
                    self._versions.lead(number)
                    break
            return
        while (current := self._versions.current) is not None and (damage := self._damage(current)) is not None:
            log.warning("version %d in %s is damaged and is removed: %s", current, self._versions.folder, damage)
            self.back()
        for unfinished in self._versions.numbers:
            if current is not None and unfinished > current:
                self._versions.remove(unfinished)

    def _damage(self, number: int) -> Exception | None:
        try:
            bundle.read(self._versions.path(number))
        except (CorruptBlobError, FileNotFoundError, KeyError, json.JSONDecodeError) as error:
            return error
        return None


class FunctionTarget:
    """A function that takes over parameters: `use(state, about)`. If it raises, it is called with the previous ones."""

    def __init__(self, use: Callable[[Any, About], Any], name: str | None) -> None:
        called = f"{getattr(use, '__module__', '')}:{getattr(use, '__qualname__', type(use).__name__)}"
        self.name = name or f"{socket.gethostname()}:{called}"
        self._use = use
        self._live: tuple[Any, About] | None = None
        self._before: tuple[Any, About] | None = None
        self._staged: tuple[Any, About] | None = None

    def current(self) -> tuple[About, int | None] | None:
        return None if self._live is None else (self._live[1], None)

    @property
    def can_go_back(self) -> bool:
        return self._before is not None

    def stage(self, state: Any, about: About) -> Any:
        self._staged = (state, about)
        return state

    def swap(self) -> int | None:
        assert self._staged is not None
        self._before, self._live, self._staged = self._live, self._staged, None
        try:
            self._use(*self._live)
        except BaseException:
            self.back()
            raise
        return None

    def back(self) -> None:
        self._live, self._before = self._before, None
        if self._live is not None:
            self._use(*self._live)

    def finalize(self) -> None:
        self._staged = None  # the previous one is kept, for a roll-back

    def close(self) -> None:
        self._live = self._before = self._staged = None


def is_set(about: About | None, id: ObjectId) -> bool:
    """Whether these are the fields of this set."""
    return about is not None and about.get("_id") == id
