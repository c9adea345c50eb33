"""The process that owns a folder's mongod: starts it, restarts it, and stops it when no client is left.

It is run by file path, as ``python -I -S supervisor.py CONFIG``, and imports nothing but the standard library: it
starts in a few milliseconds, whatever the client's environment and import path look like. CONFIG is JSON, written by
`tensordb_data.embedded.start`.

Three things keep the promise that mongod never outlives its clients and never dies before them:

- mongod is spawned from the main thread with PR_SET_PDEATHSIG, so the kernel kills it when this process is killed;
  its journal makes that safe.
- A second thread waits for the exclusive lock on ``server.lock``, of which each client holds a share. The kernel grants
  it when the last client has gone, however it went.
- Whether to stop is decided under ``start.lock``, where clients decide whether to start, so the two never cross.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import deque

READY = b'"id":23016'  # "Waiting for connections"
PRIMARY = b'"id":21331'  # "Transition to primary complete; database writes are now permitted"
LOG_BYTES = 16 << 20  # per file; one older file is kept
QUICK = 10.0  # seconds; a mongod that lives shorter failed quickly
QUICK_FAILURES = 4
STOP_SECONDS = 60.0
PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None, use_errno=True).prctl


def explain(status: int, tail: list[str], config: dict[str, object]) -> str:
    """The one line that tells a user why mongod ended, and what to do, from its exit status and last lines."""
    text = "\n".join(tail)
    folder, port = config["folder"], config["port"]
    if "error while loading shared libraries" in text:
        library = text.split("error while loading shared libraries:", 1)[1].split(":", 1)[0].strip()
        return (
            f"mongod needs the system library {library}, which is not installed (on Debian and Ubuntu: apt-get install "
            "libcurl4 libssl3), or set TENSORDB_MONGOD to a mongod built for this system"
        )
    if "No space left on device" in text or "Disk quota exceeded" in text:
        return f"the disk that holds {folder} is full: free some space and connect again"
    if "DBPathInUse" in text or "Unable to lock the lock file" in text:
        return f"{folder}/mongo is in use by another mongod, which TensorDB did not start: stop that one first"
    if "Address already in use" in text:
        return f"port {port} on 127.0.0.1 is taken by another program: choose another with `tensordb up --port N`"
    if status == 62 or "featureCompatibilityVersion document" in text or "Wrong mongod version" in text:
        return (
            f"{folder} was written by an incompatible MongoDB version: set TENSORDB_MONGOD to a mongod of the version "
            "that wrote it (see tensordb.json in the folder)"
        )
    if "Permission denied" in text or "Operation not permitted" in text or "Read-only file system" in text:
        return f"mongod may not write to {folder}/mongo: check its owner and permissions"
    if status == -signal.SIGILL:
        return "mongod met an instruction this CPU lacks (MongoDB 5.0 and later need AVX): use a server elsewhere"
    ended = f"signal {-status}" if status < 0 else f"status {status}"
    return f"mongod ended with {ended}; see {folder}/mongod.log. Its last words: {_last_words(tail)}"


def _last_words(tail: list[str]) -> str:
    """The most serious of the last lines, shortened."""
    for severity in ("F", "E"):
        for line in tail:
            with contextlib.suppress(ValueError, AttributeError):
                entry = json.loads(line)
                if entry.get("s") == severity:
                    return f"{entry.get('msg')} {json.dumps(entry.get('attr', {}))}"[:400]
    return " ".join(tail[-2:])[-400:] or "none"


class Log:
    """mongod's log in the warehouse folder, capped in size. A full disk costs log lines, never the server."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        self._size = 0

    def write(self, line: bytes) -> None:
        try:
            if self._fd < 0:
                self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
                self._size = os.fstat(self._fd).st_size
            if self._size > LOG_BYTES:
                os.replace(self._path, self._path + ".1")
                os.close(self._fd)
                self._fd = -1
                self.write(line)
                return
            self._size += os.write(self._fd, line)
        except OSError:
            pass


class Supervisor:
    """Owns one mongod for the life of this process."""

    def __init__(self, config: dict[str, object], ready: int) -> None:
        self.config = config
        self.folder = str(config["folder"])
        self.run = str(config["run"])
        self.command = [str(part) for part in config["command"]]  # type: ignore[attr-defined]
        self.ready = ready
        self.log = Log(os.path.join(self.folder, "mongod.log"))
        self.child: subprocess.Popen[bytes] | None = None
        self.stopping = False
        self.wake = threading.Event()
        self.reconsider = threading.Event()
        self.pid = os.getpid()
        self.lock = -1

    # -- what clients see

    def report(self, **message: object) -> None:
        """Tell the client that started this process how it went; it may be gone already."""
        if self.ready >= 0:
            with contextlib.suppress(OSError):
                os.write(self.ready, json.dumps(message).encode() + b"\n")
            os.close(self.ready)
            self.ready = -1

    def write_state(self, **more: object) -> None:
        """Write server.json: where the sockets are and how the server was started. Never a secret."""
        keys = ("identity", "host", "run", "port", "version")
        state = {key: self.config[key] for key in keys} | {"supervisor": self.pid} | more
        path = os.path.join(self.folder, "server.json")
        try:
            with open(path + ".new", "w", encoding="utf-8") as file:
                json.dump(state, file)
            os.replace(path + ".new", path)
        except OSError:  # a full disk: the reason is reported all the same
            with contextlib.suppress(OSError):
                os.unlink(path + ".new")

    def publish(self) -> None:
        """Give clients their socket, now that mongod takes writes: before that they would get 'not primary' errors."""
        if self.in_place():
            with contextlib.suppress(OSError):
                os.symlink("server.sock", os.path.join(self.run, "mongod.sock"))

    def unpublish(self) -> None:
        if self.in_place():
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(self.run, "mongod.sock"))

    def in_place(self) -> bool:
        """Whether the folder is the one that this process serves: somebody may have removed it, or made it anew."""
        try:
            there = os.stat(os.path.join(self.folder, "supervisor.lock"))
        except OSError:
            return False
        return os.path.samestat(there, os.fstat(self.lock))

    # -- start and stop

    def take_lock(self) -> bool:
        """Hold supervisor.lock until this process ends. Retried: `status` takes a share of it for an instant."""
        self.lock = os.open(os.path.join(self.folder, "supervisor.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        for _ in range(250):
            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                time.sleep(0.02)
        return False

    def hold_pipe(self) -> None:
        """Make the FIFO whose end tells clients that this process died, however it died."""
        path = os.path.join(self.run, "alive")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        os.mkfifo(path, 0o600)
        os.open(path, os.O_RDWR)  # never closed

    def spawn(self) -> subprocess.Popen[bytes]:
        def die_with_parent() -> None:
            _prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != self.pid:  # it died before the line above
                os._exit(1)

        child = subprocess.Popen(
            self.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=self.folder,
            preexec_fn=die_with_parent,
        )  # fmt: skip
        self.child = child
        if self.stopping:
            child.terminate()
        return child

    def stop(self) -> None:
        """Stop mongod cleanly; `main` ends when it has ended. Safe to call from a signal handler."""
        self.stopping = True
        self.wake.set()
        if self.child is not None:
            if not self.in_place():
                self.child.kill()  # a clean end would remove the socket of the server that may be there now
                return
            self.child.terminate()
            timer = threading.Timer(STOP_SECONDS, self.child.kill)
            timer.daemon = True
            timer.start()

    def wait_for_old_mongod(self) -> None:
        """Wait until the mongod of a killed supervisor has let go of the data; the kernel is killing it."""
        try:
            fd = os.open(os.path.join(self.folder, "mongo", "mongod.lock"), os.O_RDWR)
        except OSError:
            return
        try:
            for _ in range(250):
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
                except BlockingIOError:
                    time.sleep(0.02)
        finally:
            os.close(fd)

    def follow(self, child: subprocess.Popen[bytes], tail: deque[str]) -> bool:
        """Copy mongod's log until it ends. Returns whether it had been ready for connections."""
        ready = False
        assert child.stdout is not None
        for line in child.stdout:
            self.log.write(line)
            tail.append(line.decode("utf-8", "replace").strip())
            if READY in line:
                ready = True
                self.write_state(mongod=child.pid)
                self.report(ok=True)
            elif PRIMARY in line:
                self.publish()
        return ready

    def serve(self) -> int:
        """Run mongod, again when it dies, until told to stop or until it keeps failing."""
        failures = 0
        while True:
            self.wait_for_old_mongod()
            tail: deque[str] = deque(maxlen=60)
            started = time.monotonic()
            child = self.spawn()
            ready = self.follow(child, tail)
            status = child.wait()
            self.unpublish()
            if self.stopping or not self.in_place():
                return 0
            reason = explain(status, list(tail), self.config)
            failures = 1 if ready and time.monotonic() - started > QUICK else failures + 1
            hopeless = self.ready >= 0 and status != -signal.SIGKILL  # it never came up, by its own doing
            if hopeless or failures > QUICK_FAILURES:
                self.write_state(error=reason)
                self.report(ok=False, error=reason)
                return 1
            self.log.write(f"tensordb: {reason}; starting it again\n".encode())
            self.wake.wait(0.1 * (failures - 1))

    # -- the watch on the clients

    def watch(self) -> None:
        """Stop mongod when no client is left."""
        try:
            self.wait_until_unused()
        finally:  # be it by an error: a server that nobody watches would run for ever
            self.stop()

    def wait_until_unused(self) -> None:
        """Wait until no client holds a share of server.lock and nobody asked to keep the server running."""
        while True:
            fd = self._lock("server.lock", fcntl.LOCK_EX)
            os.close(fd)  # no upgrade is attempted: only the look under start.lock counts
            if not self.in_place():
                return
            start = self._lock("start.lock", fcntl.LOCK_EX)
            try:
                fd = self._lock("server.lock", fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # a client came in between
                os.close(start)
                continue
            if not self.kept():
                return  # both locks stay held until this process ends
            self.reconsider.clear()
            os.close(fd)
            os.close(start)
            self.reconsider.wait()  # kept running without clients: `tensordb down` sends SIGUSR1

    def _lock(self, name: str, operation: int) -> int:
        fd = os.open(os.path.join(self.folder, name), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, operation)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def kept(self) -> bool:
        """Whether `tensordb up` asked to run on without clients; what it asked of another folder does not count."""
        try:
            with open(os.path.join(self.folder, "keep.json"), encoding="utf-8") as file:
                return bool(json.load(file)["identity"] == self.config["identity"])
        except (OSError, ValueError, LookupError, TypeError):
            return False

    def clean_up(self) -> None:
        """Leave a folder that any tool can copy: no sockets, no FIFO, no state."""
        names = ["mongod.sock", "server.sock", "alive"]
        for path in [os.path.join(self.run, name) for name in names] + [os.path.join(self.folder, "server.json")]:
            with contextlib.suppress(OSError):
                os.unlink(path)
        with contextlib.suppress(OSError):
            os.rmdir(self.run)

    def main(self) -> int:
        if not self.take_lock():
            self.report(ok=False, busy=True, error="another supervisor serves this folder")
            return 1
        signal.signal(signal.SIGTERM, lambda *_: self.stop())
        signal.signal(signal.SIGUSR1, lambda *_: self.reconsider.set())
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        _set_limits()
        try:
            self.unpublish()  # left by a supervisor that was killed
            self.hold_pipe()
            self.write_state()
            watch = threading.Thread(target=self.watch, daemon=True)
            watch.start()
            status = self.serve()
        except OSError as error:
            self.report(ok=False, error=f"cannot start mongod for {self.folder}: {error}")
            return 1
        if self.stopping and self.in_place() and (not watch.is_alive() or self.unused()):
            self.clean_up()
        return status

    def unused(self) -> bool:
        """Whether no client is connected, nor can be until this process ends."""
        try:
            self._lock("server.lock", fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def _set_limits() -> None:
    """Take the file descriptors that the hard limit allows, for mongod wants many; and no core files of its size."""
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 64000 if hard == resource.RLIM_INFINITY else min(64000, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def main() -> None:
    """Leave the client that started this process, and serve."""
    config = json.loads(sys.argv[1])
    if os.fork():
        os._exit(0)  # the client reaps this one at once, and init the other: nobody is left with a zombie
    os.umask(0o077)
    status = Supervisor(config, int(config["ready"])).main()
    os._exit(status)  # threads may be blocked in flock; the kernel releases the locks


if __name__ == "__main__":
    main()
