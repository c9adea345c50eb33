"""Bytes and bars as people read them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensordb_data.common.sizes import parse_size, show_size
from tensordb_data.common.text_table import sparkline


@pytest.mark.parametrize(
    ("nbytes", "shown"),
    [
        (0, "0 B"), (999, "999 B"), (1000, "1 kB"), (33_600_000, "33.6 MB"), (999_400, "999 kB"), (999_600, "1 MB"),
        (19_300_000_000, "19.3 GB"), (5 * 10**18, "5000 PB"), (-2_000, "-2 kB"),
    ],
)  # fmt: skip
def test_sizes(nbytes: int, shown: str) -> None:
    assert show_size(nbytes) == shown and show_size(nbytes, "_") == shown.replace(" ", "_")


@given(st.integers(1, 10**15))
def test_a_size_that_is_shown_is_read_to_three_digits(nbytes: int) -> None:
    shown = show_size(nbytes)
    assert len(shown) <= 8 and "e" not in shown
    if not shown.endswith("PB"):
        assert parse_size(shown, "x") == pytest.approx(nbytes, rel=0.006)


def test_sparklines() -> None:
    assert sparkline([]) == "" and sparkline([3.0, 3.0]) == "▁▁" and sparkline([0, 1, 2, 4], 4) == "▁▃▅█"
    assert sparkline([1, math.nan, 3]) == "▁ █" and sparkline([math.inf]) == " "


@given(st.lists(st.floats()))
def test_a_sparkline_has_a_bar_for_each_value(values: list[float]) -> None:
    line = sparkline(values)
    assert len(line) == len(values) and set(line) <= set(" ▁▂▃▄▅▆▇█")
    finite = [value for value in values if math.isfinite(value)]
    if finite and max(finite) > min(finite):
        assert "█" in line and "▁" in line
