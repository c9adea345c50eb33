"""What is shown to a person gives up after a second or two, and says so. On a busy machine that would be now and then.

Tests of what is shown wait for it. Those of what happens when it takes too long set their own limits.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

_LIMITS = {
    "cli.runs.listing": ("_SECONDS", "_ALL_SECONDS"),
    "samples.sample": ("_SECONDS",),
    "table.activity.facts": ("_SECONDS",),
    "table.activity.growth": ("_SECONDS",),
    "table.activity.look": ("_SECONDS",),
    "table.datasets": ("_SECONDS",),
    "table.notebook": ("_SECONDS", "_COUNT_SECONDS"),
}
_OF_PAGES = {
    "ui.pages.curves": ("_EXACT_SECONDS",),
    "ui.pages.home": ("_SECONDS",),
    "ui.pages.params": ("_SIZE_SECONDS",),
    "ui.pages.runs": ("_METRIC_SECONDS",),
    "ui.pages.samples": ("_SECONDS", "_SORT_SECONDS", "_FACET_SECONDS", "_COUNT_SECONDS"),
    "ui.view": ("SECONDS", "_PING_SECONDS"),
}


def _unhurried(limits: dict[str, tuple[str, ...]]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module, names in limits.items():
            for name in names:
                patch.setattr(f"tensordb_data.{module}.{name}", 60.0)
        yield


@pytest.fixture(autouse=True)
def unhurried() -> Iterator[None]:
    """Whatever is shown on a terminal or in a notebook is waited for."""
    yield from _unhurried(_LIMITS)


@pytest.fixture(autouse=True)
def unhurried_pages() -> Iterator[None]:
    """Whatever a page shows is waited for."""
    yield from _unhurried({**_LIMITS, **_OF_PAGES})
