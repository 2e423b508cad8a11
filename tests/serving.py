"""A real server on this machine: uvicorn on a free port, a tiny model behind it."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import uvicorn

from indexmem_cli.config import AnswerConfig, MemoryConfig, ModelConfig
from indexmem_cli.server.app import Server, ServerConfig, make_app


@contextmanager
def serve(model: ModelConfig, memory: MemoryConfig, **options: Any) -> Iterator[str]:
    """Run a server and yield its address."""
    server = Server(ServerConfig(**options), memory, model, AnswerConfig(max_tokens=6))
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(make_app(server), log_config=None, timeout_graceful_shutdown=2)
    program = uvicorn.Server(config)
    thread = threading.Thread(target=program.run, args=([listener],), daemon=True)
    thread.start()
    while not program.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        program.should_exit = True
        thread.join(timeout=20)
        listener.close()


def bring(address: str, name: str, data: bytes, **headers: str) -> httpx2.Response:
    """Send a document to the server."""
    return httpx2.post(
        f"{address}/v1/memories", params={"name": name}, content=data, headers=headers
    )
