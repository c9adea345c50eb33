"""`tensordb worker --metrics`: what a worker tells Prometheus."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from tensordb_data import TensorDB
from tests.steady.processes import Popen


def test_prometheus_scrapes_a_worker(db: TensorDB, mongo_uri: str) -> None:
    with db.data.writer("digits") as writer:
        writer.add(label=1)
    job = db.jobs.push("read", entry="json:loads", args={"s": "[1]"})
    words = [sys.executable, "-m", "tensordb_data.cli.main", "worker", "--allow", "json", "--metrics", "0"]
    with Popen([*words, "--db", mongo_uri], stderr=subprocess.PIPE, text=True) as worker:
        assert worker.stderr is not None
        told = ""
        while "done" not in told:
            line = worker.stderr.readline()
            assert line, told
            told += line
        (place,) = re.findall(r"metrics at (http://127\.0\.0\.1:\d+/metrics)", told)
        with urllib.request.urlopen(place, timeout=30) as answer:
            text = answer.read().decode()
        found = {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        assert found[("tensordb_jobs_total", "done")] == 1 and found[("tensordb_queue_jobs", "done")] == 1
        assert found[("tensordb_queue_workers",)] == 1 and "digits" not in text
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(timeout=60) == 0
    assert job.status == "done"
