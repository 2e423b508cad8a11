"""What answers without a model reach: the best sentence, the first span of the usual kind, xz."""

import lzma
import re
import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence

_SENTENCE_END = re.compile(r"(?<=[.?!”\"])\s+|\n+")
_WORD = re.compile(r"\w+")
# Kinds of answers and how a span of each looks; the first that fits names an answer's kind.
_KINDS = {
    "number": re.compile(r"\b[0-9][0-9,.:/-]*\b(?: [a-z]+)?"),
    "name": re.compile(r"(?<=[a-z,] )[A-Z]\w+(?:(?: of| the)? [A-Z]\w+)*"),
    "phrase": re.compile(r"\b(?:the|a|an|his|her|its|their) \w+(?: \w+)?"),
}


def best_sentence(text: str, question: str) -> str:
    """Return the sentence of `text` that BM25 ranks first for the words of the question."""
    sentences = split_sentences(text)
    ranked = rank(sentences, question)
    return sentences[ranked[0]] if ranked else sentences[0] if sentences else ""


def best_passages(text: str, question: str, size: int) -> list[tuple[int, str]]:
    """Return runs of whole sentences of about `size` characters, best first, with their places."""
    passages, current = [], ""
    for sentence in split_sentences(text):
        current = f"{current} {sentence}".strip()
        if len(current) >= size:
            passages.append(current)
            current = ""
    passages += [current] if current else []
    return [(place, passages[place]) for place in rank(passages, question)]


def split_sentences(text: str) -> list[str]:
    """Split at the ends of sentences and lines."""
    return [part.strip() for part in _SENTENCE_END.split(text) if part.strip()]


def rank(texts: Sequence[str], question: str) -> list[int]:
    """Return the places of the texts that share words with the question, by BM25, best first."""
    words = " OR ".join(f'"{word}"' for word in _WORD.findall(question))
    if not words:
        return []
    with sqlite3.connect(":memory:") as base:
        base.execute("CREATE VIRTUAL TABLE found USING fts5(part, tokenize = 'porter')")
        base.executemany("INSERT INTO found VALUES (?)", [(one,) for one in texts])
        query = "SELECT rowid - 1 FROM found WHERE found MATCH ? ORDER BY bm25(found)"
        return [place for (place,) in base.execute(query, (words,))]


def kind_of_answer(answer: str) -> str:
    """Say whether an answer is a number, a name, or another phrase."""
    if any(c.isdigit() for c in answer):
        return "number"
    return "name" if answer[:1].isupper() else "phrase"


def most_frequent_kind(answers: Iterable[str]) -> str:
    """Return the kind that most of the answers are of."""
    return Counter(map(kind_of_answer, answers)).most_common(1)[0][0]


def first_of_kind(text: str, question: str, kind: str) -> str:
    """Return the first span of a kind in `text` that the question does not name itself."""
    spans = (match[0] for match in _KINDS[kind].finditer(text))
    return next((span for span in spans if span.lower() not in question.lower()), "")


def compressed_bits_per_byte(texts: Sequence[bytes]) -> float:
    """Return the bits that xz needs for a byte of the texts, all taken together."""
    whole = b"".join(texts)
    return len(lzma.compress(whole, preset=9 | lzma.PRESET_EXTREME)) * 8 / len(whole)
