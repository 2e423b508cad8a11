"""What reading some sources would mean, counted without a model."""

from collections.abc import Sequence
from typing import BinaryIO

from indexmem_cli.checkpoint import find_checkpoint
from indexmem_cli.config import MemoryConfig, ModelConfig, ReadConfig
from indexmem_cli.coverage import coverage_of, describe_undecoded
from indexmem_cli.documents import open_sources
from indexmem_cli.events import FileReport, Inspection
from indexmem_cli.plan import plan_ahead
from indexmem_cli.tokens import count_tokens, load_tokenizer


def inspect(
    sources: Sequence[str],
    *,
    read: ReadConfig,
    memory: MemoryConfig,
    model: ModelConfig,
    stdin: BinaryIO | None = None,
) -> Inspection:
    """Count what reading the sources would mean, without loading a model."""
    opened = open_sources(sources, read, stdin)
    checkpoint = find_checkpoint(model.model, model.offline)
    tokenizer = load_tokenizer(checkpoint.path)
    files = []
    for document in opened.documents:
        tokens = count_tokens(document.passages(), tokenizer)
        size = document.size_bytes or 0
        about = (document.name, document.kind, document.pages_total, tokens, size)
        files.append(FileReport(*about, inner=document.header))
    total = sum(file.tokens for file in files)
    plan = plan_ahead(memory, checkpoint.window_tokens)
    per_token = checkpoint.kv_bytes_per_token(checkpoint.likely_dtype(model.dtype, model.device))
    return Inspection(
        files=tuple(files),
        coverage=coverage_of(opened, total),
        model=model.model,
        budget_tokens=plan.budget_tokens,
        kv_bytes=min(total, plan.budget_tokens) * per_token,
        full_kv_bytes=total * per_token,
        kv_bytes_per_token=per_token,
        notices=tuple(describe_undecoded(opened)),
    )
