"""Hard-wrapped text as running text: the lines of a paragraph are joined, each keeps its place."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import compress, pairwise

from indexmem_cli.documents.passages import Passage

WIDTHS = range(40, 121)
"""Lengths in characters that the longest line of a wrapped paragraph may have."""
MAX_LINES = 256
"""A longer paragraph is joined in parts."""
TIGHT_FRACTION = 0.8
LOWER_FRACTION = 0.3
SAME_START_FRACTION = 0.4
MIN_WORDS = 3

LIST_ITEM = re.compile(r"\[|(?:\d{1,3}[.)]|\(\w{1,3}\)|[-\u2013*\u2022\u2023\u25aa\u25e6\u00b7])\s")
_COLUMNS = re.compile(r"\t|[^\s.!?:]\s{2,}\S")
_SENTENCE_END = re.compile(r"[.!?\u2026][\"')\]\u201d\u2019\u00bb]*\s*$")
_OPENING = tuple("\"'(\u201c\u2018\u00ab\u201e")


def join_wrapped(passages: Iterable[Passage]) -> Iterator[Passage]:
    """Join the lines of hard-wrapped paragraphs, with a space in place of the line end.

    The space begins the passage of the later line, as a passage must. Everything else stays as it
    is: passages, places, and how many characters there are.
    """
    paragraph: list[Passage] = []
    for passage in passages:
        paragraph.append(passage)
        is_inside = passage.text.endswith("\n") and passage.text.count("\n") == 1
        if not is_inside or len(paragraph) == MAX_LINES:
            yield from _join(paragraph)
            paragraph = []
    if paragraph:
        yield from _join(paragraph)


def unwrap(text: str) -> str:
    """Join the lines of the hard-wrapped paragraphs of a text that is whole."""
    paragraphs = [paragraph.split("\n") for paragraph in text.split("\n\n")]
    return "\n\n".join(
        "".join(line + end for line, end in zip(lines, _ends(lines), strict=True))
        for lines in paragraphs
    )


def _ends(lines: list[str]) -> list[str]:
    return [*(" " if soft else "\n" for soft in find_soft_breaks(lines)), ""]


def _join(paragraph: list[Passage]) -> Iterator[Passage]:
    breaks = find_soft_breaks([passage.text.rstrip("\n") for passage in paragraph])
    for passage, before, after in zip(paragraph, [False, *breaks], [*breaks, False], strict=True):
        text = passage.text[:-1] if after else passage.text
        yield replace(passage, text=" " + text if before else text)


def find_soft_breaks(lines: Sequence[str]) -> list[bool]:
    """Tell for each line end of a paragraph but the last whether it comes from wrapping.

    A paragraph is wrapped if its lines are as long as they can be: the first word of the next one
    would have made them longer than the longest. Judged are lines that end within a sentence: four
    in five have to be so, some of the next to begin in small letters, and not too many of them
    with one word, as those of tables and logs do.
    """
    ends = len(lines) - 1
    width = max((len(line.rstrip()) for line in lines), default=0)
    if width not in WIDTHS:
        return [False] * ends
    inside = [_may_go_on(*pair) for pair in pairwise(lines)]
    tight = [
        len(f"{line.rstrip()} {following.lstrip().partition(' ')[0]}") > width
        for line, following in pairwise(lines)
    ]
    amid = [not _SENTENCE_END.search(line) for line in lines[:-1]]
    judged = list(map(all, zip(inside, amid, strict=True)))
    starts = Counter(line.split()[0] for line in compress(lines[1:], judged))
    num_lower = sum(count for word, count in starts.items() if word[0].islower())
    is_wrapped = (
        any(judged)
        and sum(compress(tight, judged)) >= TIGHT_FRACTION * sum(judged)
        and num_lower >= LOWER_FRACTION * sum(judged)
        and max(starts.values()) <= max(1, SAME_START_FRACTION * sum(judged))
    )
    return [is_wrapped and all(pair) for pair in zip(inside, tight, strict=True)]


def is_prose(text: str) -> bool:
    """Tell words from rows of numbers and from code: three characters in five are letters."""
    chars = text.replace(" ", "")
    return sum(map(str.isalpha, chars)) >= 0.6 * len(chars)


def _may_go_on(line: str, following: str) -> bool:
    """Tell whether the sentence of a line may go on in the next one, by their form alone."""
    text = following.lstrip()
    return (
        (text[:1].isalnum() or text.startswith(_OPENING))
        and not line.endswith(("  ", ":", "|"))
        and not line.lstrip().startswith(("#", "|", "<"))
        and not LIST_ITEM.match(text)
        and len(line.split()) >= MIN_WORDS
        and not any(_COLUMNS.search(each.strip()) for each in (line, following))
        and is_prose(line)
        and is_prose(following)
    )
