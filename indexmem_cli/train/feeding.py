"""Makes the batches of coming steps beside the training, in a thread or in processes."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from random import Random

import numpy as np

from indexmem_cli.tokens import load_tiktoken
from indexmem_cli.train.data import Corpus
from indexmem_cli.train.episodes import EpisodeMaker
from indexmem_cli.train.recipes import Recipe

Arrays = tuple[np.ndarray, np.ndarray]
_own: dict[str, EpisodeMaker] = {}  # of a process that makes batches


def make_maker(data: Path, out: Path, recipe: Recipe) -> EpisodeMaker:
    """Make the maker of a recipe's rows, from the tokens and the tokenizer in a run's folder."""
    corpus = Corpus(out / "cache", load_tiktoken(out / "model"))
    return EpisodeMaker(
        corpus,
        data,
        text_fraction=recipe.text_fraction,
        renamed_fraction=recipe.renamed_fraction,
    )


def make_batch(maker: EpisodeMaker, recipe: Recipe, seed: int, step: int) -> Arrays:
    """Draw the rows of one step: ids int64 and loss weights fp32, [rows, length]."""
    stage = recipe.stage_at(step)
    rows = max(1, stage.batch_tokens // stage.length_tokens)
    rng = Random(f"{seed}-{step}")
    return maker.make_batch(rng, stage.mix, rows, stage.length_tokens)


@contextmanager
def feed(
    maker: EpisodeMaker, recipe: Recipe, seed: int, first: int, data: Path, out: Path
) -> Iterator[Iterator[Arrays]]:
    """Give the batches of the steps from `first` on, in order, each made ahead of its use."""
    pool: Executor
    if recipe.makers:
        setup = partial(_set_up, data, out, recipe)
        pool = ProcessPoolExecutor(recipe.makers, get_context("spawn"), setup)
        draw = partial(_make_own, recipe, seed)
    else:
        pool = ThreadPoolExecutor(1)
        draw = partial(make_batch, maker, recipe, seed)
    ahead = 2 * recipe.makers + 1
    with pool:
        coming = deque(pool.submit(draw, step) for step in range(first, first + ahead))

        def batches() -> Iterator[Arrays]:
            step = first + ahead
            while True:
                batch = coming.popleft().result()
                coming.append(pool.submit(draw, step))
                step += 1
                yield batch

        try:
            yield batches()
        finally:
            pool.shutdown(cancel_futures=True)


def _set_up(data: Path, out: Path, recipe: Recipe) -> None:
    _own["maker"] = make_maker(data, out, recipe)


def _make_own(recipe: Recipe, seed: int, step: int) -> Arrays:
    return make_batch(_own["maker"], recipe, seed, step)
