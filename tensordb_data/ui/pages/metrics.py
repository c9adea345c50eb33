"""The page that Prometheus reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import Response

from tensordb_data.common.telemetry.exposition import CONTENT_TYPE, exposition
from tensordb_data.common.telemetry.measures import collect
from tensordb_data.table.activity.measured import Measured

if TYPE_CHECKING:
    from tensordb_data.ui.view import View


def metrics(view: View) -> Response:
    """`./metrics`: what the index tells of a project, and what this process has counted."""
    known: dict[str, Measured] = view.window.measured
    if len(known) > _PROJECTS:
        known.clear()
    measured = known.setdefault(view.db.project, Measured(view.db.warehouse))
    return Response(exposition([*collect(), *measured.values()]), headers={"Content-Type": CONTENT_TYPE})


_PROJECTS = 100
