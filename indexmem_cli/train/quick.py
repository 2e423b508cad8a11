"""An adapter for any model in about a minute: a linear score fitted to one document.

The model repeats parts of the document; how much attention each token receives then is fitted by
ridge regression from the states of the token. Source: KVzap (the same idea, offline).
"""

from pathlib import Path
from random import Random

import torch
from torch import Tensor

from indexmem_cli.checkpoint import find_checkpoint
from indexmem_cli.config import ADAPTER_FILE, ModelConfig, ReadConfig
from indexmem_cli.documents import open_sources
from indexmem_cli.errors import DocumentError, IndexMemError
from indexmem_cli.loading import load_backbone, load_prompt
from indexmem_cli.memory.adapter import Adapter, hash_model, save_adapter
from indexmem_cli.memory.indexer import IndexerConfig, TokenIndexer
from indexmem_cli.tokens import load_tokenizer
from indexmem_cli.train.adapter import rank_correlation
from indexmem_cli.train.teachers import WholeModel, attention_labels, reconstruction_scores

CHUNK_TOKENS = 256
MAX_CHUNKS = 24
MIN_CHUNKS = 4
LEAST_CORRELATION = 0.35
PENALTIES = (1.0, 10.0, 100.0, 1e3, 1e4)
REPEAT = "Repeat the document word for word."


def fit_adapter(
    model: str, document: Path, out: Path, *, threads: int = 3, seed: int = 0
) -> tuple[Path, dict[str, float]]:
    """Fit a linear, shared indexer to a document; returns the adapter's path and its scores.

    A quarter of the parts is held out: the penalty is chosen, and the correlation measured, there.

    Raises:
        DocumentError: the document is too short. IndexMemError: the fit says too little.
    """
    torch.set_num_threads(threads)
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
    text = torch.tensor([ids[s : s + CHUNK_TOKENS] for s in starts[:MAX_CHUNKS]])
    prompt = load_prompt(checkpoint)
    between = prompt.closing(tokenizer.encode(REPEAT))
    whole = WholeModel(load_backbone(checkpoint, ModelConfig(model)))
    shape = whole.model.config.get_text_config()
    config = IndexerConfig(
        "shared",
        whole.managed,
        shape.hidden_size,
        shape.num_key_value_heads,
        shape.num_attention_heads,
        whole.decoder.layers[0].self_attn.head_dim,
        hidden=0,
    )
    states, targets = _look(whole, text.to(whole.device), prompt.opening, between, config)
    held_out = max(1, len(text) // 4)
    indexer, correlation = _fit(config, states, targets, held_out)
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


def _look(
    whole: WholeModel, text: Tensor, before: list[int], between: list[int], config: IndexerConfig
) -> tuple[Tensor, Tensor]:
    """States [N, C, width] of all parts, and the log of the attention each token received."""
    states, targets = [], []
    for part in text:  # one at a time: memory stays that of one part and its repetition
        received, hidden = reconstruction_scores(
            whole, part[None], before, between, config.watched_layers
        )
        label = attention_labels(received, config.groups, by_head=False)[0][:, 0]
        states.append(hidden[config.watched_layers[0]].float())
        targets.append((label + 1e-6).log())
    targets = torch.cat(targets)
    return torch.cat(states), (targets - targets.mean()) / targets.std()


def _fit(
    config: IndexerConfig, states: Tensor, targets: Tensor, held_out: int
) -> tuple[TokenIndexer, float]:
    """Ridge regression; the penalty that orders the last `held_out` parts best."""
    indexer = TokenIndexer(config).to(states.device).requires_grad_(False)
    net = indexer.nets[0]
    features = net.norm(states)
    known = features[:-held_out].flatten(0, 1).double()
    wanted = targets[:-held_out].flatten().double()
    mean = known.mean(0)
    gram = (known - mean).T @ (known - mean)
    moment = (known - mean).T @ (wanted - wanted.mean())
    fits: list[tuple[float, Tensor]] = []
    for penalty in PENALTIES:
        eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        weight = torch.linalg.solve(gram + penalty * eye, moment).float()
        scores = features[-held_out:] @ weight
        pairs = zip(scores, targets[-held_out:], strict=True)
        correlation = sum(rank_correlation(a, b) for a, b in pairs) / held_out
        fits.append((correlation, weight))
    correlation, weight = max(fits, key=lambda fit: fit[0])
    net.out.weight.copy_(weight[None])
    net.out.bias.copy_(wanted.float().mean() - (mean.float() * weight).sum())
    return indexer, correlation
