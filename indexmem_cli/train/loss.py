"""What an indexer is trained by: labels of attention, and what the model loses without a token."""

import math

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, kl_div

ATTENDED = 0.2
"""A token that received this share of some answer token's attention was needed for the answer."""
GATE_MASS = 64.0
"""How many tokens' worth of attention the gate leaves to all that may be evicted."""


def distil_loss(scores: list[Tensor], labels: list[Tensor], counted: Tensor) -> Tensor:
    """Cross-entropy of "was this token ever attended to", over the counted tokens.

    Args:
        scores, labels: per managed layer [B, 1 or G, T]; layers that share a score share the label.
        counted: bool [B, T].
    """
    losses = []
    for i, (score, label) in enumerate(zip(scores, labels, strict=True)):
        if i and score is scores[i - 1]:
            continue
        wanted = (label > ATTENDED).float()
        loss = binary_cross_entropy_with_logits(score, wanted, reduction="none")
        losses.append(loss.mean(dim=1)[counted].mean())
    return torch.stack(losses).mean()


def streaming_kl(importance: Tensor, teacher: Tensor, counted: Tensor) -> Tensor:
    """KL( softmax_t teacher || softmax_t importance ), the paper's loss, over the counted tokens.

    Args:
        importance: largest relevance of any query, fp32 [B, T]. teacher: largest attention logit of
            any query and head, fp32 [B, T]. counted: bool [B, T]; sinks are not.
    """
    nothing = torch.finfo(torch.float32).min
    student = importance.masked_fill(~counted, nothing).log_softmax(-1)
    truth = teacher.masked_fill(~counted, nothing).softmax(-1)
    return kl_div(student, truth, reduction="batchmean")


def soft_gate(
    scores: Tensor, hidden: Tensor, recent: int, sinks: int, mass: float = GATE_MASS
) -> Tensor:
    """Turn scores into numbers to add to attention logits, so that gradients reach the scores.

    gate[i, j] = s_j - logsumexp over j' in hist(i) of s_j' + log(mass), at history tokens j;
    0 at pinned ones (sinks, and the last `recent` before i). hist(i) is what row i sees and is not
    pinned. The normaliser makes the gate blind to a constant; the pins make a flat gate differ
    from the dense model, so that there is something to learn.

    Args:
        scores: fp32 [B, 1 or G, T]. hidden: 0 or -inf, [B, 1 or G, T, T], as `hide_evicted` gives.

    Returns:
        fp32 [B, 1 or G, T, T]; 0 where hidden, so that nothing infinite is ever differentiated.
    """
    tokens = torch.arange(scores.shape[-1], device=scores.device)
    history = (tokens[None] >= sinks) & (tokens[None] <= tokens[:, None] - recent)
    seen = history & (hidden == 0)
    spread = scores.unsqueeze(2).expand(hidden.shape)
    nothing = torch.finfo(torch.float32).min
    norm = spread.masked_fill(~seen, nothing).logsumexp(-1, keepdim=True)
    return (spread - norm + math.log(mass)).masked_fill(~seen, 0.0)


def reverse_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean KL( student || teacher ) of logits [R, V]."""
    student, teacher = student.log_softmax(-1), teacher.log_softmax(-1)
    return (student.exp() * (student - teacher)).sum(-1).mean()
