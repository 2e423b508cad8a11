"""A linear score fitted by ridge regression to what a model attends to when it repeats a text."""

from collections.abc import Sequence

import torch
from torch import Tensor

from indexmem_cli.checkpoint import Checkpoint
from indexmem_cli.config import ModelConfig
from indexmem_cli.loading import load_backbone, load_prompt
from indexmem_cli.memory.indexer import IndexerConfig, TokenIndexer
from indexmem_cli.train.adapter import rank_correlation
from indexmem_cli.train.teachers import WholeModel, attention_labels, reconstruction_scores

PENALTIES = (1.0, 10.0, 100.0, 1e3, 1e4)


def fit_score(
    checkpoint: Checkpoint, parts: Sequence[Sequence[int]], request: list[int]
) -> tuple[TokenIndexer, float]:
    """Fit a linear score that all layers share.

    A quarter of the parts is held out: the penalty is chosen, and the correlation measured, there.

    Args:
        parts: token ids of pieces of a text, all of one length.
        request: those of the words that ask the model to repeat a piece.

    Returns:
        The indexer, and its rank correlation with the attention that held-out tokens receive.
    """
    text, prompt = torch.tensor(parts), load_prompt(checkpoint)
    whole = WholeModel(load_backbone(checkpoint, ModelConfig(checkpoint.id)))
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
    between = prompt.closing(request)
    states, targets = _look(whole, text.to(whole.device), prompt.opening, between, config)
    return _fit(config, states, targets, held_out=max(1, len(text) // 4))


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
