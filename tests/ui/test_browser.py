"""The pages in a browser: what scripts do, and that nothing breaks the policy of the page."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from tensordb_data import TensorDB
from tensordb_data.ui import make_app
from tests.ui.conftest import TOKEN

playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect


def test_curves_and_keys(filled: TensorDB, opened: Callable[..., Any]) -> None:
    page = opened(make_app(filled, token=TOKEN), "runs")
    expect(page.locator("#plot canvas")).to_be_visible()
    expect(page.locator('#plot[data-drawn="exact"]')).to_be_visible()
    expect(page.locator("#plot-legend li")).to_have_count(2)
    page.get_by_label("log scale").check()
    expect(page).to_have_url(re.compile("log=1"))
    page.get_by_label("Metric").select_option("acc")
    expect(page.get_by_text("acc, last")).to_be_visible()
    page.locator("body").press("j")
    expect(page.locator("tr.at")).to_have_count(1)
    page.keyboard.press("x")  # one of the two is not shown any more
    expect(page).to_have_url(re.compile(r"run=cnn-lr0\.1&(?!run=)"))
    expect(page.locator("#plot-legend li")).to_have_count(1)
    page.locator("body").press("?")
    expect(page.locator("dialog#keys")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("dialog#keys")).to_be_hidden()
    page.keyboard.press("/")
    expect(page.locator('textarea[name="q"]')).to_be_focused()


def test_rows_are_renewed_in_place_and_new_ones_are_announced(filled: TensorDB, opened: Callable[..., Any]) -> None:
    page = opened(make_app(filled, token=TOKEN, write=True), "jobs")
    page.get_by_role("button", name="Retry").click()
    expect(page.get_by_role("status")).to_contain_text("is ready")
    expect(page.get_by_role("button", name="Retry")).to_have_count(0)
    filled.jobs.push("new", entry="a:b")
    expect(page.locator("#new-rows")).to_contain_text("1 new")
    expect(page.locator("main tbody tr")).to_have_count(3)
    page.get_by_role("button", name="Show").click()
    expect(page.locator("main tbody tr")).to_have_count(4)
