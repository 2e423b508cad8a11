"""Texts that share words with a question and do not answer it: what recall finds beside the answer.

A reader that meets random texts alone learns to tell them apart by their words. Source: hard
negatives found by BM25, as dense retrievers are trained with (arXiv:2004.04906), here for reading.
"""

import sqlite3
from collections.abc import Sequence

from indexmem_cli.terms import terms_of

MIN_CHARS = 4
"""Shorter words of a question, which every text holds, are not searched for."""


class Neighbours:
    """An index of texts by their words, in memory; any thread may search it, one at a time."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._db = sqlite3.connect(":memory:", check_same_thread=False)
        self._db.execute("CREATE VIRTUAL TABLE texts USING fts5(text, tokenize='porter unicode61')")
        self._db.executemany("INSERT INTO texts VALUES (?)", ((text,) for text in texts))

    def find(self, question: str, count: int) -> list[int]:
        """Return the places of at most `count` texts, best first by BM25."""
        terms = [f'"{term}"' for term in terms_of(question) if len(term) >= MIN_CHARS]
        query = "SELECT rowid - 1 FROM texts WHERE texts MATCH ? ORDER BY bm25(texts) LIMIT ?"
        found = self._db.execute(query, (" OR ".join(terms), count)) if terms else ()
        return [place for (place,) in found]
