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


def ready(page: Any) -> None:
    """Wait for the scripts of a page that was just entered: before, nobody sees keys."""
    expect(page.locator("html[data-ready]")).to_have_count(1)


def test_curves_go_on_with_the_rows_that_are_new(filled: TensorDB, opened: Callable[..., Any]) -> None:
    page = opened(make_app(filled, token=TOKEN), "runs?run=cnn-lr0.1&metric=loss")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    expect(page.locator('#plot[data-drawn="exact"]')).to_be_visible()
    expect(page.locator("#plot-legend li")).to_contain_text("at step 40")
    with filled.logs.run("cnn-lr0.1") as log:
        log.write(41, loss=0.125)
        log.write(42, loss=0.0625)
    expect(page.locator("#plot-legend li")).to_contain_text("0.0625 at step 42", timeout=60_000)
    expect(page.locator("#plot")).to_have_attribute("data-rows", "42")
    assert [url for url in asked if "/fresh?" in url]


def test_curves_and_keys(filled: TensorDB, opened: Callable[..., Any]) -> None:
    page = opened(make_app(filled, token=TOKEN), "runs")
    expect(page.locator("#plot canvas")).to_be_visible()
    expect(page.locator('#plot[data-drawn="exact"]')).to_be_visible()
    expect(page.locator("#plot-legend li")).to_have_count(2)
    page.get_by_label("log scale").check()
    expect(page).to_have_url(re.compile("log=1"))
    page.get_by_label("Metric").select_option("acc")
    expect(page.get_by_text("acc, last")).to_be_visible()
    ready(page)
    page.locator("body").press("j")
    expect(page.locator("tr.at")).to_have_count(1)
    page.keyboard.press("x")  # one of the two is not shown any more
    expect(page).to_have_url(re.compile(r"run=cnn-lr0\.1&(?!run=)"))
    expect(page.locator("#plot-legend li")).to_have_count(1)
    ready(page)
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
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")  # a look at the page asks for its rows
    expect(page.locator("#new-rows")).to_contain_text("1 new")
    expect(page.locator("main tbody tr")).to_have_count(3)
    page.get_by_role("button", name="Show").click()
    expect(page.locator("main tbody tr")).to_have_count(4)


def test_a_selection_is_tagged_by_keys_and_undone(filled: TensorDB, opened: Callable[..., Any]) -> None:
    page = opened(make_app(filled, token=TOKEN, write=True), "data%3Fdataset=digits")
    expect(page.locator('#facets[data-drawn="1"]')).to_be_visible()
    expect(page.locator(".tile").first.locator("img[src^='blob:']")).to_be_visible()
    for key in ("j", "x", "j", "j", "X"):
        page.keyboard.press(key)
    expect(page.locator("#selected")).to_have_text("3 selected")
    page.keyboard.press("t")
    page.locator('#edit [name="value"]').fill("look-again")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_contain_text("3 samples changed")
    expect(page.locator(".tile").first).to_contain_text("look-again")
    assert filled.data.find({"tags": "look-again"}).count() == 3
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_role("status")).to_contain_text("undone: 3")
    assert filled.data.find({"tags": "look-again"}).count() == 0
    page.keyboard.press("l")
    page.locator('#edit [name="value"]').fill("three")
    page.get_by_role("button", name="Change").click()
    expect(page.locator("#edit-wrong")).to_contain_text("expected int, found")
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="All that match").click()
    expect(page.locator("#selected")).to_have_text("120 selected: all that match")
    page.locator("#more").scroll_into_view_if_needed()
    expect(page.locator(".tile.chosen")).to_have_count(120)
    page.keyboard.press("t")
    page.locator('#edit [name="value"]').fill("everywhere")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_contain_text("120 samples changed")
    expect(page.locator(".tile").last).to_contain_text("everywhere")


def test_blocks_facets_and_a_sample(filled: TensorDB, opened: Callable[..., Any]) -> None:
    page = opened(make_app(filled, token=TOKEN), "data%3Fdataset=digits")
    page.locator("#more").scroll_into_view_if_needed()
    expect(page.locator(".tile")).to_have_count(120)
    bars = page.locator(".histogram a")
    bars.nth(2).hover()
    page.mouse.down()
    bars.nth(5).hover()
    page.mouse.up()
    expect(page.locator(".tile")).to_have_count(20)  # four of 24 bars
    page.go_back()
    page.locator("#facets").get_by_role("link", name="3", exact=True).click()
    expect(page.locator(".tile")).to_have_count(12)
    page.locator("#facets").get_by_role("link", name="3", exact=True).click(modifiers=["Shift"])
    expect(page.locator(".tile")).to_have_count(100)
    page.locator(".tile a").nth(1).click()
    expect(page.locator("h1")).to_contain_text("Sample")
    expect(page.locator("img.blob")).to_be_visible()
    ready(page)
    first = page.url
    page.keyboard.press("j")
    expect(page).not_to_have_url(first)
    expect(page.locator("#before")).to_be_visible()
    ready(page)
    page.keyboard.press("Escape")
    expect(page).to_have_url(first)
    ready(page)  # Chromium may never close a page that is on its way to another one
