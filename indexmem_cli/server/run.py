"""Listen on an address, and run the application there until Ctrl-C."""

import socket
import sys

import uvicorn
from fastapi import FastAPI

from indexmem_cli.errors import IndexMemError, reason


def listen(host: str, port: int) -> socket.socket:
    """Take an address; whoever connects from now on waits to be served.

    Raises:
        IndexMemError: the address cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise IndexMemError(
            f"{host}:{port} cannot be listened on: {reason(error)}", "another --port, or 0"
        ) from error
    return listener


def run_server(app: FastAPI, listener: socket.socket, verbose: bool) -> None:
    """Say on standard error where it listens, and serve until the process is told to end."""
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"http://{shown}:{port}", file=sys.stderr, flush=True)
    level = "info" if verbose else "error"
    config = uvicorn.Config(
        app, log_level=level, access_log=verbose, timeout_graceful_shutdown=5, log_config=None
    )
    with listener:
        uvicorn.Server(config).run(sockets=[listener])
