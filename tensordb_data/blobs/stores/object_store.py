"""Blobs in S3, Google Cloud Storage, Azure, or a server that speaks S3."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import obstore
from obstore.exceptions import BaseError
from obstore.store import from_url

from tensordb_data.blobs.stores.base import Buffer, check_key, check_range, without_secrets
from tensordb_data.errors import StorageError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

T = TypeVar("T")

_CLIENT: ClientConfig = {"connect_timeout": "3s", "read_timeout": "20s", "timeout": "120s"}
_RETRY: RetryConfig = {
    "max_retries": 8,
    "retry_timeout": timedelta(seconds=60),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2},
}
# The first request must not make a newcomer with a wrong address wait.
_FIRST_CLIENT: ClientConfig = {"connect_timeout": "3s", "timeout": "10s"}
_FIRST_RETRY: RetryConfig = {**_RETRY, "max_retries": 3, "retry_timeout": timedelta(seconds=4)}
_STALE = (0.1, 0.3, 0.9)  # seconds between attempts to read what is not there: some stores show an object a bit later

_network_pid: int | None = None  # the process that first used the network


class ObjectStore:
    """Objects below a prefix of a bucket, over HTTP.

    Credentials and endpoint come from the usual environment (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, …,
    `GOOGLE_APPLICATION_CREDENTIALS`, `AZURE_STORAGE_ACCOUNT_KEY`, …). Failed requests are retried a few times.

    Args:
        url: `s3://bucket/prefix`, `gs://…` or `az://…`, without credentials.

    Raises:
        StorageError: the URL names no bucket, or the environment has a setting that cannot be used.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._store = self._client(_CLIENT, _RETRY)
        self._answered = False

    def __repr__(self) -> str:
        return f"ObjectStore({self.url!r})"

    def put(self, key: str, parts: Sequence[Buffer], *, cold: bool = False) -> None:
        check_key(key)
        self._reach("write", key)
        try:
            obstore.put(self._store, key, b"".join(parts))
        except Exception as error:
            raise self._error("write", key, error) from None

    def get(self, key: str) -> memoryview:
        check_key(key)
        self._reach("read", key)
        try:
            return memoryview(_soon(lambda: obstore.get(self._store, key).bytes()))
        except Exception as error:
            raise self._error("read", key, error) from None

    def get_ranges(self, key: str, offsets: Sequence[int], lengths: Sequence[int]) -> list[memoryview]:
        check_key(key)
        self._reach("read", key)
        if any(offset < 0 for offset in offsets) or any(length < 0 for length in lengths):
            self._check_ranges(key, offsets, lengths)
        # An empty range cannot be asked for over HTTP.
        asked = [i for i, length in enumerate(lengths) if length]
        found = [memoryview(b"")] * len(lengths)
        try:
            if asked:
                starts, sizes = [int(offsets[i]) for i in asked], [int(lengths[i]) for i in asked]
                # The caller has merged near ranges by its own measure.
                answers = _soon(lambda: obstore.get_ranges(self._store, key, starts=starts, lengths=sizes, coalesce=0))
                for i, answer in zip(asked, answers, strict=True):
                    found[i] = memoryview(answer)
        except Exception as error:
            if not isinstance(error, FileNotFoundError):
                self._check_ranges(key, offsets, lengths)  # a range past the end deserves a better message
            raise self._error("read", key, error) from None
        if len(asked) < len(lengths) or any(len(found[i]) != lengths[i] for i in asked):
            self._check_ranges(key, offsets, lengths)
        return found

    def size(self, key: str) -> int:
        check_key(key)
        self._reach("read", key)
        try:
            return int(obstore.head(self._store, key)["size"])
        except Exception as error:
            raise self._error("read", key, error) from None

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        self._reach("list", prefix)
        # The service takes whole path parts as a prefix; the rest of it is compared here.
        folder = prefix.rpartition("/")[0]
        try:
            for page in obstore.list(self._store, folder or None):
                for found in page:
                    if found["path"].startswith(prefix):
                        yield found["path"], int(found["size"])
        except Exception as error:
            raise self._error("list", prefix, error) from None

    def delete(self, key: str) -> None:
        check_key(key)
        self._reach("delete", key)
        try:
            obstore.delete(self._store, key)
        except FileNotFoundError:
            pass
        except Exception as error:
            raise self._error("delete", key, error) from None

    def sweep(self, silent: float, dry_run: bool = False) -> tuple[int, int]:
        """Nothing.

        A part of an upload is no object: a bucket can have a rule that ends uploads which were never completed.
        """
        return 0, 0

    def local_path(self, key: str) -> Path | None:
        return None

    def close(self) -> None:
        """Connections are shared by the process, and close when idle."""

    def _check_ranges(self, key: str, offsets: Sequence[int], lengths: Sequence[int]) -> None:
        size = self.size(key)
        for offset, length in zip(offsets, lengths, strict=True):
            check_range(f"{self.url}/{key}", size, int(offset), int(length))

    def _reach(self, action: str, key: str) -> None:
        """Refuse a forked process, and find out with little patience whether anyone is there at all."""
        self._check_process(action, key)
        if self._answered:
            return
        try:
            obstore.head(self._client(_FIRST_CLIENT, _FIRST_RETRY), key or "tensordb")
        except FileNotFoundError:
            pass
        except Exception as error:
            raise self._error(action, key, error) from None
        self._answered = True

    def _check_process(self, action: str, key: str) -> None:
        global _network_pid
        pid = os.getpid()
        if _network_pid is None:
            _network_pid = pid
        elif _network_pid != pid:
            raise StorageError(
                f"cannot {action} {self.url}/{key}: process {pid} was forked after process {_network_pid} had used an "
                "object store, and the connections do not survive that (every request would hang): start workers "
                'with DataLoader(..., multiprocessing_context="forkserver") or "spawn"'
            )

    def _client(self, client: ClientConfig, retry: RetryConfig) -> Any:
        if not re.fullmatch(r"\w+://[^/]+(/.*)?", self.url):
            raise StorageError(f"expected a URL such as s3://bucket/prefix, found {self.url!r}")
        options: Any = {**client, **_environment_options(self.url)}
        try:
            return from_url(self.url, client_options=options, retry_config=retry)
        except Exception as error:
            raise self._error("open", "", error) from None

    def _error(self, action: str, key: str, error: Exception) -> StorageError:
        if not isinstance(error, (BaseError, OSError, ValueError)):
            raise error
        place = f"{self.url}/{key}".rstrip("/")
        if isinstance(error, FileNotFoundError) and action == "read":
            return StorageError(
                f"expected a blob at {place}, found none: was it deleted, or is the bucket another one?"
            )
        return StorageError(f"cannot {action} {place}{_at_endpoint(self.url)}: {_reason(error)}")


def _soon(read: Callable[[], T]) -> T:
    """What is read, again a bit later if it is not there."""
    for pause in _STALE:
        try:
            return read()
        except FileNotFoundError:
            time.sleep(pause)
    return read()


def _environment_options(url: str) -> dict[str, Any]:
    """What the environment says about connections; obstore forgets it once it is given options of ours."""
    prefix = {"s3": "AWS", "gs": "GOOGLE", "az": "AZURE"}[url.partition(":")[0]]
    options: dict[str, Any] = {}
    for name in ("allow_http", "allow_invalid_certificates"):
        options[name] = os.environ.get(f"{prefix}_{name.upper()}", "").lower() in ("1", "true", "yes", "on")
    for name in ("proxy_url", "proxy_excludes"):
        value = os.environ.get(f"{prefix}_{name.upper()}")
        if value:
            options[name] = value
    endpoint = _endpoint(url)
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise StorageError(
            f"expected an endpoint that begins with http:// or https:// in the environment, found {endpoint!r}: write"
            f" for example http://{endpoint.split('://')[-1]}"
        )
    if endpoint.startswith("http://") and not options["allow_http"]:
        raise StorageError(
            f"{url}: the endpoint {endpoint} has no encryption: set AWS_ALLOW_HTTP=true to use it all the same"
        )
    return options


def _endpoint(url: str) -> str:
    found = os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT") or ""
    return without_secrets(found) if url.startswith("s3:") else ""


def _at_endpoint(url: str) -> str:
    endpoint = _endpoint(url)
    return f" at {endpoint}" if endpoint else ""


def _reason(error: Exception) -> str:
    """The cause, in one line and without what a signed request would give away."""
    text = re.sub(r"\s+", " ", str(error).split("Debug source:")[0]).strip()
    told = re.search(r"<Code>(.*?)</Code>.*?<Message>(.*?)</Message>", text)
    if told:
        return f"{told[1]}: {told[2]}"
    if "error sending request" in text or "error trying to connect" in text:
        return "no answer: is the address right, and the server up?"
    if "status code: 403" in text or "status code: 401" in text:
        return "access denied: are the credentials in the environment right, and allowed to do this?"
    return re.sub(r"\?[^\s\"')]*", "", text)[:300] or type(error).__name__
