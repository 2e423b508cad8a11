"""How the gate is fitted, on candidates that are drawn by a known rule."""

from random import Random

import pytest

from indexmem_cli.memory.recall import Candidate, make_classifier, rate
from indexmem_cli.train.gate import fit, fit_order


def draw(seed, questions=400):
    """Draw questions of which some are easier for all candidates, which tells nothing of the order.

    The right one has the lowest `refusal` but for some chance; one question in five has none.
    """
    rng = Random(seed)
    samples = []
    for _ in range(questions):
        ease = rng.gauss(0, 5)
        refusal = [rng.gauss(0, 1) for _ in range(5)]
        best = min(range(5), key=lambda i: refusal[i] + rng.gauss(0, 0.2))
        has_one = rng.random() < 0.8
        samples.append(
            [
                (Candidate(i, (ease, refusal[i] + ease, rng.gauss(0, 1))), has_one and i == best)
                for i in range(5)
            ]
        )
    return samples


def share_first(classifier, samples):
    """Share of the questions with a right candidate that have it first."""
    answered = [sample for sample in samples if any(right for _, right in sample)]
    firsts = [rate(classifier, [c for c, _ in sample])[0][1] for sample in answered]
    return sum(s[n][1] for s, n in zip(answered, firsts, strict=True)) / len(answered)


@pytest.fixture(scope="module")
def fitted():
    return make_classifier(fit_order(draw(0), "rerank"), "rerank")


def test_the_order_is_learned_among_the_candidates_of_one_question(fitted):
    assert share_first(fitted, draw(1)) > 0.85
    _, refusal, question = fitted.weights
    assert refusal < 0 and abs(question) < 0.1 * abs(refusal)


def test_odds_are_those_of_being_right(fitted):
    samples = draw(1)
    odds = [fitted.odds(candidate) for sample in samples for candidate, _ in sample]
    right = [is_right for sample in samples for _, is_right in sample]
    assert sum(odds) / len(odds) == pytest.approx(sum(right) / len(right), abs=0.03)
    alone = make_classifier(fit(draw(0), "rerank"), "rerank")
    assert share_first(alone, samples) > 0.5, "each candidate for itself"
