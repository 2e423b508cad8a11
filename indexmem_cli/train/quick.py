"""An adapter for any model in about a minute: a linear score fitted to one document.

The model repeats parts of the document; how much attention each token receives then is fitted by
ridge regression from the states of the token. Source: KVzap (the same idea, offline).
"""

from pathlib import Path
from random import Random

from indexmem_cli.checkpoint import find_checkpoint
from indexmem_cli.config import ADAPTER_FILE, ReadConfig
from indexmem_cli.documents import open_sources
from indexmem_cli.errors import DocumentError, IndexMemError
from indexmem_cli.tokens import load_tokenizer

CHUNK_TOKENS = 256
MAX_CHUNKS = 24
MIN_CHUNKS = 4
LEAST_CORRELATION = 0.35
REPEAT = "Repeat the document word for word."


def fit_adapter(
    model: str, document: Path, out: Path, *, threads: int = 3, seed: int = 0
) -> tuple[Path, dict[str, float]]:
    """Fit a linear, shared indexer to a document; returns the adapter's path and its scores.

    Raises:
        DocumentError: the document is too short. IndexMemError: the fit says too little.
    """
    opened = open_sources([str(document)], ReadConfig())
    checkpoint = find_checkpoint(model)
    tokenizer = load_tokenizer(checkpoint.path)
    ids = [i for d in opened.documents for p in d.passages() for i in tokenizer.encode(p.text)]
    if len(ids) < MIN_CHUNKS * CHUNK_TOKENS:
        raise DocumentError(
            f"{document.name} has {len(ids):,} tokens: too few to fit anything",
            f"give a document of at least {MIN_CHUNKS * CHUNK_TOKENS:,}",
        )
    starts = list(range(0, len(ids) - CHUNK_TOKENS + 1, CHUNK_TOKENS))
    Random(seed).shuffle(starts)
    parts = [ids[start : start + CHUNK_TOKENS] for start in starts[:MAX_CHUNKS]]
    # Not before: a document that will not do is refused at once.
    import torch

    from indexmem_cli.memory.adapter import Adapter, hash_model, save_adapter
    from indexmem_cli.train.ridge import fit_score

    torch.set_num_threads(threads)
    indexer, correlation = fit_score(checkpoint, parts, tokenizer.encode(REPEAT))
    if correlation < LEAST_CORRELATION:
        raise IndexMemError(
            f"the score fitted to {document.name} orders held-out tokens no better than "
            f"{correlation:.2f} (rank correlation; {LEAST_CORRELATION} is needed)",
            "nothing was written: stay with a policy that needs no training",
        )
    out.mkdir(parents=True, exist_ok=True)
    path, scores = out / ADAPTER_FILE, {"rank_correlation": correlation}
    hashes = hash_model(checkpoint.path)
    save_adapter(Adapter(indexer, *hashes, [CHUNK_TOKENS], scores), path)
    return path, scores
