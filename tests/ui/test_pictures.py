"""All pages as a person sees them: pictures of them, and what axe finds to be in the way of people."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tensordb_data import TensorDB
from tensordb_data.ui import make_app
from tests.ui.conftest import TOKEN

ROOT = Path(__file__).parents[2]
# Of the docs if they are asked for (make pictures), else kept to be looked at.
PICTURES = ROOT / "docs/_static" if os.environ.get("PICTURES") else ROOT / "build/ui"
RULES = {"light": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"], "dark": ["color-contrast"]}


@pytest.fixture
def digits(db: TensorDB) -> TensorDB:
    """Handwritten digits, three runs and a few jobs."""
    from sklearn.datasets import load_digits

    known = load_digits()
    rng = np.random.default_rng(0)
    images = np.kron(known.images[:600].astype(np.uint8) * 15, np.ones((1, 4, 4), np.uint8))
    with db.data.writer("digits") as writer:
        for number, (image, label) in enumerate(zip(images, known.target[:600].tolist(), strict=True)):
            tags = ["scan", "hard"] if rng.random() < 0.1 else ["scan"]
            split = ["train", "train", "train", "valid"][number % 4]
            writer.add(image=image, label=label, split=split, conf=float(rng.beta(6, 2)), tags=tags)
    for lr in (0.01, 0.03, 0.1):
        name = f"cnn-lr{lr}"
        with db.logs.run(name, config={"lr": lr, "width": 32, "optimizer": "adam"}, tags=["cnn", "sweep"]) as log:
            for step in range(1, 1501):
                spike = 1.0 if rng.random() < 0.003 else 0.0
                log.write(step, loss=2.3 * np.exp(-step * lr / 40) + 0.1 + 0.08 * rng.random() + spike)
            for step in range(100, 1501, 100):
                log.write(step, kind="valid", val_acc=1 - 0.9 * np.exp(-step * lr / 30))
        db.params.save({"w": np.ones((8, 8), np.float32)}, run=name, step=1500, val_acc=0.9 + lr / 2, tags=["best"])
    first = db.jobs.push("train", entry="mypkg.jobs:train", args={"lr": 0.1}, tags=["sweep"])
    db.jobs.push("evaluate", entry="mypkg.jobs:evaluate", after=[first])
    db.jobs.push("train", entry="mypkg.jobs:train", priority=5, requires={"gpu": 1}, tags=["sweep"])
    db.jobs.push("train", entry="mypkg.jobs:train").cancel("not needed any more")
    return db


def test_pages_as_a_person_sees_them(digits: TensorDB, opened: Callable[..., Any]) -> None:
    from axe_playwright_python import sync_playwright as axe

    source = Path(axe.__file__).with_name("axe.min.js").read_text()
    sample, job, one = digits.data.find().first(), digits.jobs.find().first(), digits.params.find().first()
    pages = {
        "home": "", "data": "data?dataset=digits", "table": "data?dataset=digits&view=table",
        "runs": "runs?smooth=0.6", "sample": f"sample?id={sample.id}&dataset=digits", "params": "params",
        "set": f"set?id={one.id}", "jobs": "jobs", "job": f"job?id={job.id}", "storage": "storage",
        "search": "search?words=cnn", "wrong": 'params?q={"',
    }  # fmt: skip
    PICTURES.mkdir(parents=True, exist_ok=True)
    # The checks are a script of others, which the policy of the page would stop.
    page = opened(make_app(digits, token=TOKEN, write=True), color_scheme="light", bypass_csp=True)
    home, findings = page.url, []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for name, address in pages.items():
            if scheme == "dark" and name not in ("data", "runs", "jobs", "sample"):  # these have all colours
                continue
            page.goto(f"{home}{address}")
            if name == "data":
                page.locator(".tile img[src^='blob:']").nth(40).wait_for()
            if name in ("data", "table"):
                page.locator('#facets[data-drawn="1"]').wait_for()
            if name == "runs":
                page.locator('#plot[data-drawn="exact"]').wait_for()
            if scheme == "light" and (not os.environ.get("PICTURES") or name in ("data", "runs")):
                page.screenshot(path=PICTURES / f"ui-{name}.png")
            page.evaluate(source)
            found = page.evaluate("rules => axe.run(document, {runOnly: rules})", RULES[scheme])["violations"]
            findings += [(scheme, name, each["id"], [node["html"] for node in each["nodes"][:3]]) for each in found]
    assert findings == []
