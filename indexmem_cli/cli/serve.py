"""`indexmem serve`: the OpenAI protocol and a page, on this machine."""

import importlib.util
import logging
from pathlib import Path
from typing import Annotated

import typer

from indexmem_cli.cli import options
from indexmem_cli.cli.noise import hush_libraries
from indexmem_cli.config import DEFAULT_MODEL, AnswerConfig, MemoryConfig, ModelConfig
from indexmem_cli.errors import ConfigError, IndexMemError


def serve(
    *,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on; others need a key.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(metavar="NUMBER", min=0, max=65535, help="0 takes a free one.")
    ] = 8765,
    api_key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File whose first line clients must send as their key."),
    ] = None,
    model: options.Model = DEFAULT_MODEL,
    quant: options.Quant = ModelConfig.quant,
    dtype: options.Dtype = ModelConfig.dtype,
    kv_dtype: options.KvDtype = ModelConfig.kv_dtype,
    device: options.Device = ModelConfig.device,
    offline: options.Offline = ModelConfig.offline,
    budget: options.Budget = None,
    chunk: options.Chunk = None,
    policy: options.Policy = MemoryConfig.policy,
    span: options.Span = MemoryConfig.span_tokens,
    answer_from: options.AnswerFrom = None,
    rerank: options.Rerank = MemoryConfig.rerank,
    recall_from: options.RecallFrom = None,
    latent: options.Latent = MemoryConfig.latent,
    max_tokens: options.MaxTokens = AnswerConfig.max_tokens,
    temperature: options.Temperature = AnswerConfig.temperature,
    seed: options.Seed = AnswerConfig.seed,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Log every request.")] = False,
) -> None:
    """Answer OpenAI clients, and serve a page to drop documents on. Ends with Ctrl-C.

    One model answers one request at a time; the others wait their turn. Documents that clients
    bring are kept until it ends; saved memories can be asked by name.

    \b
    Examples:
      indexmem serve --budget 4k
      indexmem serve --port 9000 --api-key-file key.txt
    """
    how = (budget, chunk, policy, span, seed, answer_from)
    memory = options.memory_config(*how, recall_from=recall_from, latent=latent, rerank=rerank)
    backbone = options.model_config(model, quant, dtype, device, offline, kv_dtype)
    answer = AnswerConfig(max_tokens, temperature, seed)
    key = options.read_first_line(api_key_file, "API key").strip() if api_key_file else None
    if missing := [name for name in ("fastapi", "uvicorn") if not importlib.util.find_spec(name)]:
        raise IndexMemError(f"{missing[0]} is not installed", "pip install 'indexmem[serve]'")
    hush_libraries(verbose)
    logging.disable(logging.NOTSET)  # faults of requests are told in the log
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s: %(message)s")
    from indexmem_cli.checkpoint import find_checkpoint
    from indexmem_cli.server.app import LOCAL_HOSTS, Server, ServerConfig, make_app
    from indexmem_cli.server.run import listen, run_server

    if host not in LOCAL_HOSTS and key is None:
        raise ConfigError(
            f"whoever reaches {host} could read what is asked", "add --api-key-file key.txt"
        )
    find_checkpoint(backbone.model, backbone.offline)  # a missing model is said now
    listener = listen(host, port)
    server = Server(ServerConfig(host, key), memory, backbone, answer)
    run_server(make_app(server), listener, verbose)
