"""Quick measures while training: is the answer that the model would give the right one?

An answer counts as right when, read along it, every token is the most probable one: exactly
then greedy decoding would give it.
"""

from random import Random

import numpy as np
import torch
from transformers import Qwen3ForCausalLM

from indexmem_cli.train.episodes import EpisodeMaker
from indexmem_cli.train.tasks import make_development_fact

PROBE_TOKENS = 49_152
MAX_ROWS = 96


def measure(model: Qwen3ForCausalLM, maker: EpisodeMaker, length: int) -> dict[str, float]:
    """Needle accuracy on development wordings, three facts in a text and one question."""
    rng = Random(length)
    rows = min(MAX_ROWS, PROBE_TOKENS // length)
    ids: np.ndarray = np.full((rows, length), maker.pad, dtype=np.int64)
    weights: np.ndarray = np.zeros((rows, length), dtype=np.float32)
    for i in range(rows):
        facts = [make_development_fact(rng) for _ in range(1 if length < 200 else 3)]
        pieces = [tuple(maker.encode(" " + f.sentences[0])) for f in facts]
        row = maker.compose(rng, pieces, [rng.choice(facts[0].turns)], length)
        ids[i, : len(row.ids)] = row.ids
        weights[i, : len(row.loss)] = [weight * (weight >= 1.0) for weight in row.loss]
    right = answers_right(model, torch.from_numpy(ids), torch.from_numpy(weights))
    return {"needle_accuracy": right.float().mean().item(), "num_needles": rows}


@torch.no_grad()
def answers_right(
    model: Qwen3ForCausalLM, ids: torch.Tensor, weights: torch.Tensor, rows_at_once: int = 8
) -> torch.Tensor:
    """Say of each row whether all its weighted tokens are predicted; bool [rows]."""
    right = []
    for part, weight in zip(ids.split(rows_at_once), weights.split(rows_at_once), strict=True):
        with torch.autocast(model.device.type, torch.bfloat16):
            hidden = model.model(
                input_ids=part[:, :-1].to(model.device), use_cache=False
            ).last_hidden_state
            wanted = weight[:, 1:] > 0
            guesses = model.lm_head(hidden[wanted]).argmax(-1).cpu()
        missed = torch.zeros_like(wanted)
        missed[wanted] = guesses != part[:, 1:][wanted]
        right.append(~missed.any(1))
    return torch.cat(right)
