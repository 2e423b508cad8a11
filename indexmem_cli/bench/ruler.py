"""The synthetic tasks of RULER, made offline at any length, and a needle at even depths.

Definitions and metric follow Hsieh et al. 2024, "RULER: What's the Real Context Size of Your
Long-Context Language Models?" (arXiv:2404.06654; github.com/NVIDIA/RULER, Apache-2.0). What
differs: the product's own prompt stands around text and question, without worked example or
beginning of an answer; essays are public-domain books; keys and common words are drawn from this
package's lists and from those books. Scores so compare methods with each other, not with published
ones.
"""

import itertools
import re
import string
import uuid
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from random import Random
from typing import Any

from indexmem_cli.bench.suites import Draw, Sample, Task, add_task
from indexmem_cli.train.tasks import Turn, make_development_fact
from indexmem_cli.train.words import ADJECTIVES, BUILDINGS, OBJECTS

NOISE = (
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
)
DEPTHS = tuple(i / 39 for i in range(40))
EVEN_DEPTHS = 10
HOPS = 4
COMMON_WORDS = 10
FREQUENCIES = ((30, 3), (10, 1), (5, 1))
"""Of common and other words: the first of which the common ones fill at most half of the room.
RULER's is the first of all."""
CODED_WORDS = 2000
CODED_LETTERS = 6
ZETA = 2.0


def make_word(rng: Random) -> str:
    """Draw a key such as `silver-lantern`."""
    return f"{rng.choice(ADJECTIVES)}-{rng.choice(OBJECTS + BUILDINGS)}"


def make_number(rng: Random) -> str:
    """Draw a number of seven digits."""
    return str(rng.randrange(10**6, 10**7))


def make_uuid(rng: Random) -> str:
    """Draw a UUID of version 4."""
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


KINDS: dict[str, Callable[[Random], str]] = {
    "words": make_word,
    "numbers": make_number,
    "uuids": make_uuid,
}


def distinct(make: Callable[[Random], str], rng: Random) -> Iterator[str]:
    """Draw without repeating; where nothing new is left, two draws are joined."""
    known: set[str] = set()
    while True:
        drawn = next((d for d in (make(rng) for _ in range(50)) if d not in known), None)
        drawn = drawn or f"{make(rng)}-{make(rng)}"
        if drawn not in known:
            known.add(drawn)
            yield drawn


def sentences(draw: Draw) -> Iterator[str]:
    """Go through the books from a sentence drawn at random, again and again."""
    start = draw.rng.randrange(len(draw.prose))
    return itertools.islice(itertools.cycle(draw.prose), start, None)


def make_niah(
    draw: Draw,
    haystack: str,
    key: str = "words",
    value: str = "numbers",
    keys: int = 1,
    values: int = 1,
    queries: int = 1,
) -> Sample:
    """Hide values under keys, and ask for those of some keys.

    Args:
        haystack: repeat (five sentences again and again), essay, or needle (other keys' needles).
        key, value: what they are, in `KINDS`.
        keys, values, queries: keys in the text, values for each, keys asked for.
    """
    rng = draw.rng
    names, drawn = distinct(KINDS[key], rng), distinct(KINDS[value], rng)

    def needle(name: str) -> str:
        return f"One of the special magic {value} for {name} is: {next(drawn)}."

    hidden = {
        name: [needle(name) for _ in range(values)]
        for name in itertools.islice(names, max(keys, queries))
    }
    asked = rng.sample(list(hidden), queries)
    *first, last = asked
    query = f"{', '.join(first)}, and {last}" if first else last
    if queries * values == 1:
        what = value.removesuffix("s")
        question = f"What is the special magic {what} for {query} mentioned in the provided text?"
    else:
        question = (
            f"What are all the special magic {value} for {query} mentioned in the provided text?"
        )
    needles = [text for texts in hidden.values() for text in texts]
    fillers: dict[str, Callable[[], Iterable[str]]] = {
        "repeat": lambda: itertools.cycle(NOISE),
        "essay": partial(sentences, draw),
        "needle": lambda: map(needle, names),
    }
    hay = draw.fill(fillers[haystack](), question, *needles)
    depths = sorted(rng.sample(DEPTHS, len(needles)))
    rng.shuffle(needles)
    text = hide(hay, list(zip(depths, needles, strict=True)))
    answers = tuple(t.rpartition(": ")[2].rstrip(".") for name in asked for t in hidden[name])
    return Sample(text, question, answers, depths[0] if len(needles) == 1 else None)


def hide(hay: list[str], needles: list[tuple[float, str]]) -> str:
    """Put sentences among others at ascending depths, as shares of their number."""
    pieces, last = [], 0
    for depth, needle in needles:
        place = round(depth * len(hay))
        pieces += [*hay[last:place], needle]
        last = place
    return " ".join([*pieces, *hay[last:]])


def make_tracking(draw: Draw, hops: int = HOPS) -> Sample:
    """Hand a value from variable to variable amid noise; all of them are asked for."""
    rng = draw.rng
    letters = distinct(lambda r: "".join(r.choices(string.ascii_uppercase, k=5)), rng)
    names = list(itertools.islice(letters, hops + 1))
    value = str(rng.randrange(10**4, 10**5))
    chain = [f"VAR {names[0]} = {value}."]
    chain += [f"VAR {b} = VAR {a}." for a, b in itertools.pairwise(names)]
    question = f"Find all variables that are assigned the value {value} in the text above."
    hay = draw.fill(itertools.cycle(NOISE), question, *chain)
    depths = sorted(rng.random() for _ in chain)
    return Sample(hide(hay, list(zip(depths, chain, strict=True))), question, tuple(names))


def make_common_words(draw: Draw) -> Sample:
    """Number a list of words of which ten come ten times as often as the others."""
    question = "What are the 10 most common words in the above list?"
    known = {w for s in draw.prose for w in re.findall(r"\b[a-z]{4,10}\b", s)}
    pool = draw.rng.sample(sorted(known), len(known))
    common, others = pool[:COMMON_WORDS], pool[COMMON_WORDS:]

    def listed(num_others: int, often: int, seldom: int) -> str:
        words = common * often + others[:num_others] * seldom
        Random(draw.number).shuffle(words)
        return " ".join(f"{i}. {word}" for i, word in enumerate(words, start=1))

    room = draw.room - draw.count(question) - 1
    fits = [f for f in FREQUENCIES if draw.count(listed(0, *f)) <= room / 2]
    often, seldom = (fits or FREQUENCIES[-1:])[0]
    make = partial(listed, often=often, seldom=seldom)
    return Sample(largest(make, draw.count, room, len(others)), question, tuple(common))


def make_frequent_words(draw: Draw) -> Sample:
    """Write coded words: the i-th comes i^-2 times as often as the first, which is noise."""
    question = (
        "What are the three most frequently appeared words in the above coded text? "
        "Ignore the dots."
    )
    coded = distinct(
        lambda r: "".join(r.choices(string.ascii_lowercase, k=CODED_LETTERS)), draw.rng
    )
    vocabulary = ["...", *itertools.islice(coded, CODED_WORDS)]
    weights = [(i + 1) ** -ZETA for i in range(len(vocabulary))]
    total = sum(weights)

    def written(num_words: int) -> str:
        counts = [round(num_words * weight / total) for weight in weights]
        words = [word for word, n in zip(vocabulary, counts, strict=True) for _ in range(n)]
        Random(draw.number).shuffle(words)
        return " ".join(words)

    room = draw.room - draw.count(question) - 1
    return Sample(largest(written, draw.count, room, draw.room), question, tuple(vocabulary[1:4]))


def largest(make: Callable[[int], str], count: Callable[[str], int], room: int, most: int) -> str:
    """Return the longest text that `make` writes within `room` tokens."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count(make(middle)) <= room else (low, middle - 1)
    return make(low)


def draw_needle(draw: Draw) -> tuple[str, Turn, float]:
    """Draw a fact of one sentence in a wording nothing was trained on.

    Returns:
        The sentence, a question with its answer, and a depth: ten even ones in turn.
    """
    fact = make_development_fact(draw.rng)
    while len(fact.sentences) > 1:
        fact = make_development_fact(draw.rng)
    depth = (draw.number % EVEN_DEPTHS + 0.5) / EVEN_DEPTHS
    return fact.sentences[0], draw.rng.choice(fact.turns), depth


def make_needle(draw: Draw) -> Sample:
    """Hide one fact among sentences of books."""
    sentence, turn, depth = draw_needle(draw)
    hay = draw.fill(sentences(draw), turn.question, sentence)
    return Sample(hide(hay, [(depth, sentence)]), turn.question, (turn.answer,), depth)


NIAH: dict[str, dict[str, Any]] = {
    "niah_single_1": {"haystack": "repeat"},
    "niah_single_2": {"haystack": "essay"},
    "niah_single_3": {"haystack": "essay", "value": "uuids"},
    "niah_multikey_1": {"haystack": "essay", "keys": 4},
    "niah_multikey_2": {"haystack": "needle"},
    "niah_multikey_3": {"haystack": "needle", "key": "uuids", "value": "uuids"},
    "niah_multivalue": {"haystack": "essay", "values": 4},
    "niah_multiquery": {"haystack": "essay", "queries": 4},
}
OTHERS = {
    "vt": Task(make_tracking, max_tokens=30),
    "cwe": Task(make_common_words, max_tokens=120),
    "fwe": Task(make_frequent_words, max_tokens=50),
}
for _name, _settings in NIAH.items():
    add_task("ruler", _name, Task(partial(make_niah, **_settings)))
for _name, _task in OTHERS.items():
    add_task("ruler", _name, _task)
add_task("needle", "needle", Task(make_needle, max_tokens=32))
