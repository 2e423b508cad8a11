"""Scores of answers, and what rows say of many of them: value, 95 % interval, number."""

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

from indexmem_cli.bench.rows import Row, wilson_interval
from indexmem_cli.config import NOT_STATED


def normalise(answer: str) -> list[str]:
    """Lower-case, drop punctuation and articles, split (the SQuAD script's way)."""
    plain = "".join(c for c in answer.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def score_f1(answer: str, accepted: Sequence[str]) -> float:
    """Return the best word F1 of `answer` against the accepted ones."""
    best, given = 0.0, normalise(answer)
    for reference in map(normalise, accepted):
        common = sum((Counter(given) & Counter(reference)).values())
        if common:
            best = max(best, 2 * common / (len(given) + len(reference)))
    return best


def score_exact(answer: str, accepted: Sequence[str]) -> bool:
    """Say whether `answer` is one of the accepted ones, normalised."""
    return normalise(answer) in [normalise(reference) for reference in accepted]


def score_rouge(answer: str, accepted: Sequence[str]) -> float:
    """Return the best ROUGE-L of `answer` against the accepted ones, words normalised as for F1.

    F1 of the longest common subsequence of words. Source: Lin 2004.
    """
    best, given = 0.0, normalise(answer)
    for reference in map(normalise, accepted):
        longest = [0] * (len(reference) + 1)  # of what was seen of the answer, by end in reference
        for word in given:
            above = longest.copy()
            for i, other in enumerate(reference):
                longest[i + 1] = above[i] + 1 if word == other else max(above[i + 1], longest[i])
        if longest[-1]:
            best = max(best, 2 * longest[-1] / (len(given) + len(reference)))
    return best


def refuses(answer: str) -> bool:
    """Say whether the model answered that the text does not say."""
    return answer.strip().startswith(NOT_STATED.rstrip("."))


def sum_up(values: Sequence[float | bool]) -> Row:
    """Return `value`, `interval_95` and `n`: of a share by Wilson, of a mean by the normal law."""
    n, mean = len(values), float(np.mean(values))
    if all(isinstance(value, (bool, np.bool_)) for value in values):
        low, high = wilson_interval(sum(map(bool, values)), n)
    else:
        half = 1.96 * float(np.std(values, ddof=min(1, n - 1))) / n**0.5
        low, high = mean - half, mean + half
    return {"value": round(mean, 5), "interval_95": [round(low, 5), round(high, 5)], "n": n}


def compare(full: Sequence[float | bool], less: Sequence[float | bool]) -> Row:
    """Sum up how much better `full` is than `less`, item by item."""
    return sum_up([float(a) - float(b) for a, b in zip(full, less, strict=True)])
