"""What a process counts, and how others read it."""

from __future__ import annotations

import gc
import json
import math
import os
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import mongomock
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client.parser import text_string_to_metric_families

from tensordb_data import TensorDB, metrics
from tensordb_data.common.telemetry import otel
from tensordb_data.common.telemetry.endpoint import serving
from tensordb_data.common.telemetry.exposition import exposition, prometheus_name
from tensordb_data.common.telemetry.measures import MEASURES, OWN, Value, add, collect, watch
from tensordb_data.errors import ConnectError, MissingExtraError

ROOT = Path(__file__).parents[3]


class Owner:
    def __init__(self) -> None:
        self.numbers = [0.0]
        numbers = self.numbers
        watch(self, lambda: values(numbers))


def values(numbers: list[float]) -> Iterator[Value]:
    yield Value("tensordb.stream.skipped", numbers[0])


def counted(name: str, **labels: str) -> float:
    wanted = tuple(sorted(labels.items()))
    return sum(value.number for value in collect() if value.name == name and value.labels == wanted)


def test_counts_are_sums_by_labels() -> None:
    before = counted("tensordb.saves", outcome="durable")
    add("tensordb.saves", outcome="durable")
    add("tensordb.saves", 2, outcome="durable")
    add("tensordb.saves", outcome="failed")
    assert counted("tensordb.saves", outcome="durable") == before + 3


def test_what_an_owner_has_counted_stays_when_it_has_gone() -> None:
    before = counted("tensordb.stream.skipped")
    one, two = Owner(), Owner()
    one.numbers[0], two.numbers[0] = 3, 4
    assert counted("tensordb.stream.skipped") == before + 7
    del one
    gc.collect()
    assert counted("tensordb.stream.skipped") == before + 7
    two.numbers[0] = 5
    assert counted("tensordb.stream.skipped") == before + 8
    del two
    gc.collect()
    assert counted("tensordb.stream.skipped") == before + 8


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_counts_from_nothing() -> None:
    add("tensordb.retries")
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        add("tensordb.retries")
        os.write(writing, str(counted("tensordb.retries")).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(writing)
    with open(reading) as told:
        assert told.read() == "1.0"


@given(st.text(), st.floats())
def test_prometheus_reads_what_is_shown(label: str, number: float) -> None:
    shown = exposition([
        Value("tensordb.dataset.written", number, (("dataset", label),)), Value("tensordb.queue.workers", 2.0),
    ])  # fmt: skip
    families = list(text_string_to_metric_families(shown))
    assert [family.name for family in families] == ["tensordb_dataset_written", "tensordb_queue_workers"]
    (sample,) = families[0].samples
    assert sample.name == "tensordb_dataset_written_total"
    assert sample.labels == {"dataset": label.encode(errors="replace").decode()}
    assert sample.value == number or (math.isnan(number) and math.isnan(sample.value))


def test_names_are_told_apart_and_have_units() -> None:
    names = [prometheus_name(name) for name in MEASURES]
    assert len(set(names)) == len(names) and all(re.fullmatch(r"tensordb_[a-z_]+", name) for name in names)
    assert prometheus_name("tensordb.stream.bytes") == "tensordb_stream_bytes_total"
    assert prometheus_name("tensordb.save.age") == "tensordb_save_age_seconds"


def test_the_page_and_the_dashboard_name_what_there_is() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(tensordb\.[a-z.]+)` \((.+?)\) \| `(\w+)` \| (.*?) \| (.+) \|$", page, re.MULTILINE)
    assert rows == [
        (name, one.unit.strip("{}"), prometheus_name(name), ", ".join(f"`{label}`" for label in one.labels), one.about)
        for name, one in MEASURES.items()
    ]
    dashboard = json.loads((ROOT / "examples" / "grafana" / "tensordb.json").read_text())
    used = {name for panel in dashboard["panels"] for each in panel["targets"]
            for name in re.findall(r"tensordb_\w+", each["expr"])}  # fmt: skip
    assert used <= {prometheus_name(name) for name in MEASURES} and len(used) > 15


def test_opentelemetry_reads_the_counts() -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader], shutdown_on_exit=False)
    metrics.enable(provider)
    metrics.enable(provider)
    add("tensordb.jobs", outcome="done")
    data = reader.get_metrics_data()
    assert data is not None
    found = {each.name: each for each in data.resource_metrics[0].scope_metrics[0].metrics}
    assert set(found) <= set(OWN) and found["tensordb.jobs"].unit == "{job}"
    points = {point.attributes["outcome"]: point.value for point in found["tensordb.jobs"].data.data_points}
    assert points["done"] == counted("tensordb.jobs", outcome="done")
    provider.shutdown()


def test_a_variable_turns_opentelemetry_on(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr(otel, "enable", lambda: calls.append(1))
    monkeypatch.setattr(otel, "_on", set())
    for value in (None, "", "0"):
        if value is None:
            monkeypatch.delenv("TENSORDB_OTEL", raising=False)
        else:
            monkeypatch.setenv("TENSORDB_OTEL", value)
        otel.enable_if_asked()
    assert calls == []
    monkeypatch.setenv("TENSORDB_OTEL", "1")
    with TensorDB(client=mongomock.MongoClient()):
        assert calls == [1]


def test_without_opentelemetry_an_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(MissingExtraError, match=r"tensordb-data\[otel\]"):
        metrics.enable()


def test_an_endpoint_answers_this_machine_alone() -> None:
    with serving(0, lambda: "tensordb_queue_workers 1.0\n") as port:
        place = f"http://127.0.0.1:{port}"
        with urllib.request.urlopen(f"{place}/metrics", timeout=30) as answer:
            assert answer.read() == b"tensordb_queue_workers 1.0\n"
            assert "version=0.0.4" in answer.headers["Content-Type"]
        for request, status in (
            (urllib.request.Request(f"{place}/"), 404),
            (urllib.request.Request(f"{place}/metrics", headers={"Host": "evil.example"}), 421),
            (urllib.request.Request(f"{place}/metrics", method="POST", data=b"x"), 501),
        ):
            with pytest.raises(urllib.error.HTTPError) as error:
                urllib.request.urlopen(request, timeout=30)
            assert error.value.code == status
            error.value.close()
        with pytest.raises(ConnectError, match=f"port {port}"), serving(port, str):
            pass
