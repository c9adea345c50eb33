"""What has changed between looks: rates, and how they have been."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from tensordb_data.table.activity.look import WINDOW, DatasetLook, Look, RunLook, SegmentLook

_KEPT = 40
"""Rates of each kind that are kept."""
_ENDED = ("done", "dead", "cancelled")
TOTALS = ("samples", "bytes", "changes", "rows", "saves", "jobs")


@dataclass(frozen=True)
class DatasetRate:
    """What is written to a dataset, by second."""

    name: str
    written: int
    """How many samples were ever written."""
    samples: float
    changes: float
    nbytes: float
    writing: int
    """How many segments are being written."""

    @property
    def is_active(self) -> bool:
        """Whether anything happens."""
        return bool(self.samples or self.changes or self.nbytes or self.writing)


class History:
    """The newest look, and the rates between those before it."""

    def __init__(self) -> None:
        self.now: Look | None = None
        self.datasets: list[DatasetRate] = []
        """Those in which something happens come first."""
        self.totals: dict[str, float] = dict.fromkeys(TOTALS, 0.0)
        """Of all together, by second: samples, bytes of segments, changes, rows of logs, saves, jobs that ended."""
        self.before: dict[str, deque[float]] = {}
        """Rates so far, the newest last: of each total, and of each dataset and run by `("dataset", name)`."""
        self._saves: set[str] | None = None

    def add(self, now: Look) -> None:
        """Take another look into account."""
        last, self.now = self.now, now
        seconds = max(1e-3, now.at - last.at) if last is not None else None
        begun = (name for name, each in now.segments.items() if each.writing)  # for a dataset that is made with it
        names = sorted({*now.datasets, *begun})
        rates = [_rate(name, last, now, seconds) for name in names]
        self.datasets = sorted(rates, key=lambda each: not each.is_active)
        saved = {each.id for each in now.saves}
        new = 0 if self._saves is None else len(saved - self._saves)
        self._saves = saved if "saves" not in now.missing else self._saves
        ended = 0 if last is None or not (now.jobs and last.jobs) else max(0, _ended(now) - _ended(last))
        self.totals = {
            "samples": sum(each.samples for each in rates), "bytes": sum(each.nbytes for each in rates),
            "changes": sum(each.changes for each in rates),
            "rows": sum(each.rows_per_second for each in now.runs.values()),
            "saves": new / seconds if seconds else 0.0, "jobs": ended / seconds if seconds else 0.0,
        }  # fmt: skip
        for name, rate in self.totals.items():
            self._note(name, rate)
        for each in rates:
            self._note(f"dataset {each.name}", each.samples)
        for name in {*now.runs, *(key[4:] for key in self.before if key.startswith("run "))}:
            self._note(f"run {name}", now.runs.get(name, RunLook()).rows_per_second)
        self._forget(now)

    def _note(self, name: str, rate: float) -> None:
        self.before.setdefault(name, deque(maxlen=_KEPT)).append(rate)

    def _forget(self, now: Look) -> None:
        """Keep no more of what is gone, or rests for as long as is kept."""
        names = {each.name for each in self.datasets}
        for name, rates in list(self.before.items()):
            kind, _, of = name.partition(" ")
            gone = kind == "dataset" and of not in names
            if gone or (kind == "run" and of not in now.runs and not any(rates)):
                del self.before[name]

    def to_json(self) -> dict[str, Any]:
        """The newest look and the rates, as plain data."""
        now = self.now
        if now is None:
            return {}
        return {
            "project": now.project, "time": now.time.isoformat(), "per_second": self.totals,
            "datasets": [
                {
                    "name": each.name, "written": each.written, "samples_per_second": each.samples,
                    "changes_per_second": each.changes, "bytes_per_second": each.nbytes, "writing": each.writing,
                }
                for each in self.datasets
            ],
            "open": [vars(each) for each in now.open],
            "runs": [{"name": name, **vars(each)} for name, each in now.runs.items()],
            "saves": [{**vars(each), "evaluators": list(each.evaluators)} for each in now.saves],
            "saving": now.saving, "backups": now.backups, "jobs": dict(now.jobs),
            "running": [vars(each) for each in now.running],
            "workers": [
                {"name": each.name, "host": each.host, "pid": each.pid, "job": each.job, "draining": each.draining}
                for each in now.workers
            ],
            "passes": now.passes, "missing": dict(now.missing),
        }  # fmt: skip


def _rate(name: str, last: Look | None, now: Look, seconds: float | None) -> DatasetRate:
    is_, segment = now.datasets.get(name, DatasetLook(0, 0)), now.segments.get(name, SegmentLook())
    was = None if last is None or "datasets" in last.missing else last.datasets.get(name, DatasetLook(0, 0))
    if was is None or seconds is None or is_.written < was.written or is_.changes < was.changes:
        was, seconds = is_, 1.0  # nothing is known of before, or another dataset has the name now
    samples, changes = (is_.written - was.written) / seconds, (is_.changes - was.changes) / seconds
    return DatasetRate(name, is_.written, samples, changes, segment.nbytes / WINDOW, segment.writing)


def _ended(one: Look) -> int:
    return sum(one.jobs.get(status, 0) for status in _ENDED)
