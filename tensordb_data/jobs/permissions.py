"""What a worker may run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tensordb_data.common.import_paths import Allow
from tensordb_data.common.options import OptionGroup, Written
from tensordb_data.errors import QueryError


@dataclass(frozen=True, kw_only=True)
class Permissions(OptionGroup):
    """What a worker may run.

    Raises:
        NotAllowedError: `allow` is not a list of packages, modules and functions.
        QueryError: Nothing may run.
    """

    allow: Sequence[str] = ()
    """Packages, modules and functions: `["mypkg."]`, as for `build(allow=...)`. Jobs with other entry points are not
    claimed."""
    scripts: bool = False
    """Whether jobs that bring their own program may run. Then everyone who can write to the warehouse can run any
    program here."""

    def _check(self, written: Written) -> None:
        Allow(self.allow, written("allow"))
        if not isinstance(self.scripts, bool):
            raise QueryError(f"{written('scripts')} is True or False; found {self.scripts!r:.200}")
        if not self.allow and not self.scripts:
            raise QueryError(
                'a worker runs nothing without a list of what it may: may=Permissions(allow=["mypkg."])'
                " (--allow mypkg.)"
            )
        object.__setattr__(self, "allow", tuple(self.allow))
