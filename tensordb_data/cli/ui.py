"""`tensordb ui`: the page of a warehouse."""

from __future__ import annotations

import ipaddress
import secrets
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tensordb_data.cli.common import Db, Project, one_line_errors, warehouse
from tensordb_data.cli.output import say
from tensordb_data.errors import QueryError

if TYPE_CHECKING:
    from tensordb_data.ui.serve import Certificate

_TOKEN_LEAST = 16
_TOKEN_BYTES = 24  # 192 bits


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(ui)


def ui(
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 for a free one.")] = 0,
    write: Annotated[
        bool, typer.Option("--write", help="Allow labels, tags, cancel and retry; else it reads.")
    ] = False,
    metrics: Annotated[
        bool, typer.Option("--metrics", help="Serve ./metrics for Prometheus, too; it brings the token as credentials.")
    ] = False,
    host: Annotated[str, typer.Option(help="The interface; the default takes connections of this machine only.")] = (
        "127.0.0.1"
    ),
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A name by which browsers may call the server. May be repeated.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="A file with the token, for one that stays the same; default: a new one.")
    ] = None,
    certfile: Annotated[Path | None, typer.Option(help="A certificate, for https.")] = None,
    keyfile: Annotated[Path | None, typer.Option(help="Its key, if it is in another file.")] = None,
    db: Db = None,
    project: Project = None,
) -> None:
    """Serve a page that shows the warehouse, and print its address. It runs until it is stopped.

    The address holds a token: whoever knows it can read all projects. A browser elsewhere comes in by a tunnel,
    `ssh -L 8237:127.0.0.1:8237 machine` with `--port 8237`.
    """
    with one_line_errors():
        from tensordb_data.ui import make_app
        from tensordb_data.ui.serve import address_of, bind, calm, make_server

        token = secrets.token_urlsafe(_TOKEN_BYTES) if token_file is None else _token_of(token_file)
        certificate = _certificate(certfile, keyfile)
    with warehouse(db, project, read_only=not write) as opened, bind(host, port) as listening:
        hosts = [*(allow_host or ()), *([] if _is_loopback(host) else [f"[{host}]" if ":" in host else host])]
        calm()
        server = make_server(make_app(opened, token=token, write=write, hosts=hosts, metrics=metrics), certificate)
        if not _is_loopback(host) and certificate is None:
            say("whoever can read the network between here and the browser can read the token and all that is shown: "
                "give --certfile and --keyfile, or leave --host out and use a tunnel", err=True)  # fmt: skip
        say(f"{address_of(listening, host, secure=certificate is not None)}?token={token}")
        server.run(sockets=[listening])


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _token_of(path: Path) -> str:
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeError) as error:
        raise QueryError(f"--token-file {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(token) < _TOKEN_LEAST or not token.isascii() or not token.isprintable() or " " in token:
        raise QueryError(
            f"--token-file {path} holds a token of at least {_TOKEN_LEAST} letters and digits that nobody can guess;"
            " make one: python -c 'import secrets; print(secrets.token_urlsafe(24))'"
        )
    return token


def _certificate(certfile: Path | None, keyfile: Path | None) -> Certificate | None:
    from tensordb_data.ui.serve import Certificate

    if certfile is None:
        if keyfile is not None:
            raise QueryError("--keyfile belongs to --certfile, which is not given")
        return None
    for path in (certfile, keyfile):
        if path is not None and not path.is_file():
            raise QueryError(f"there is no file {path}")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certfile, keyfile, password="")
    except (OSError, ValueError) as error:  # without a password, none is asked for at the terminal
        raise QueryError(f"--certfile {certfile} is no certificate with its key: {error}") from None
    return Certificate(certfile, keyfile)
