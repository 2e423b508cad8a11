"""Rows of `indexers.py`: what came of every text, summed up by cell with intervals and twins."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from indexer_methods import FULL, twin_of

from indexmem_cli.bench.rows import Row

UNANSWERABLE = {("prose", "oracle"), ("prose", "question")}


def complete(results: list[Row], modes: Sequence[str]) -> list[Row]:
    """Leave out texts that were not read under every scorer, budget by budget."""
    found = defaultdict(set)
    for row in results:
        found[row["task"], row["number"], row["kept"]].add(row["mode"])
    wanted = {
        task: {m for m in modes if m != FULL and (task, m) not in UNANSWERABLE}
        for task, _, _ in found
    }
    whole = {key for key, has in found.items() if wanted[key[0]] <= has}
    return [row for row in results if (row["task"], row["number"], row["kept"]) in whole]


def bootstrap(by_document: Sequence[Sequence[float]], draws: int = 2000) -> tuple[float, float]:
    """The 95 % interval of a mean over questions, drawing whole documents."""
    sums = np.array([[sum(scores), len(scores)] for scores in by_document], dtype=float)
    picks = np.random.default_rng(0).integers(len(sums), size=(draws, len(sums)))
    totals = sums[picks].sum(axis=1)
    return tuple(float(x) for x in np.quantile(totals[:, 0] / totals[:, 1], (0.025, 0.975)))


def over_twin(found: list[Row], twin: list[Row]) -> list[float] | None:
    """Mean difference to the twin on the same questions, with its 95 % interval."""
    if not twin:
        return None
    pairs = zip(found, sorted(twin, key=lambda result: result["number"]), strict=True)
    apart = [[a - b for a, b in zip(x["scores"], y["scores"], strict=True)] for x, y in pairs]
    return [float(np.mean([d for document in apart for d in document])), *bootstrap(apart)]


def summarise(results: list[Row]) -> Iterator[Row]:
    """One row for each task, share kept and scorer."""
    cells = defaultdict(list)
    for result in results:
        cells[result["task"], result["kept"], result["mode"]].append(result)
    for (task, kept, mode), found in cells.items():
        found.sort(key=lambda result: result["number"])
        scores = [result["scores"] for result in found]
        flat = [score for document in scores for score in document]
        held = [share for result in found for share in result["evidence_kept"]]
        yield {
            "task": task,
            "kept": 1.0 if mode == FULL else kept,
            "mode": mode,
            "n": len(flat),
            "documents": len(found),
            "score": float(np.mean(flat)),
            "interval_95": bootstrap(scores),
            "evidence_kept": float(np.mean(held)) if held else None,
            "over_twin": over_twin(found, cells.get((task, kept, twin_of(mode)), [])),
            "results": [[round(score, 4) for score in document] for document in scores],
        }
