"""What the page tells Prometheus."""

from __future__ import annotations

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from tensordb_data import TensorDB
from tensordb_data.table.activity import measured
from tensordb_data.ui import make_app
from tests.ui.conftest import TOKEN

BEARER = {"Authorization": f"Bearer {TOKEN}"}


def scraped(client: TestClient, query: str = "") -> dict[tuple[str, ...], float]:
    answer = client.get(f"/metrics{query}", headers=BEARER)
    assert answer.status_code == 200 and answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_prometheus_scrapes_the_page(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    name = 'di"gits\n\\'
    with db.data.writer(name) as writer:
        writer.add_many(image=np.ones((7, 100), np.uint8), label=np.arange(7))
    with db.logs.run("cnn") as log:
        log.write(1, loss=1.0)
    db.params.save({"w": np.ones(1000)}, run="cnn")
    db.jobs.push("train", entry="json:loads")
    client = TestClient(make_app(db, token=TOKEN, metrics=True), base_url="http://127.0.0.1")
    assert client.get("/metrics").status_code == 401
    assert client.get("/metrics", headers={**BEARER, "Host": "evil.example"}).status_code == 421
    found = scraped(client)
    assert found[("tensordb_dataset_written_total", name)] == 7 and found[("tensordb_queue_jobs", "ready")] == 1
    assert found[("tensordb_queue_workers",)] == found[("tensordb_unknown",)] == found[("tensordb_changes_open",)] == 0
    assert found[("tensordb_log_rate_rows_per_second",)] == pytest.approx(0.1)
    assert found[("tensordb_blobs_size_bytes", "data")] > 0 and 0 <= found[("tensordb_save_age_seconds",)] < 600
    assert found[("tensordb_saves_total", "durable")] >= 1
    assert ("tensordb_dataset_written_total", name) not in scraped(client, "?project=other")
    # Whoever asks again soon is told the same, and the database is asked no more.
    asked: list[object] = []
    monkeypatch.setattr(measured, "facts", asked.append)
    assert scraped(client)[("tensordb_dataset_written_total", name)] == 7 and not asked


def test_without_the_option_there_is_no_such_page(db: TensorDB) -> None:
    client = TestClient(make_app(db, token=TOKEN), base_url="http://127.0.0.1")
    assert client.get("/metrics", headers=BEARER).status_code == 404


def test_a_server_that_is_away_is_one_thing_unknown(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensordb_data.errors import ConnectError

    def away(*args: object) -> None:
        raise ConnectError("mongodb://me:geheim@db1 is away")

    monkeypatch.setattr(measured, "facts", away)
    client = TestClient(make_app(db, token=TOKEN, metrics=True), base_url="http://127.0.0.1")
    found = scraped(client)
    assert found[("tensordb_unknown",)] == 1 and ("tensordb_queue_workers",) not in found
