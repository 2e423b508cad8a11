"""Answers in the text's own words: which tokens may come next, so that one span of it is copied.

Source: explicit retrieval within the context, as RecaLLM decodes its evidence.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from indexmem_cli.tokens import Tokenizer

_OPENED = re.compile(r"(?<=[\"'“‘«(\[{—–/-])\w")
"""Where a word begins after an opening mark and not after a space."""
_OPENED_CHARS = 400  # of the text after such a mark that can be copied


@dataclass
class Copying:
    """One span, token by token: it begins with a word, ends with one, and is nowhere changed.

    White space counts as one space, wherever lines were broken.
    """

    tokenizer: Tokenizer
    stop_ids: frozenset[int]
    texts: list[list[int]] = field(default_factory=list)
    _ends: list[list[bool]] = field(default_factory=list)
    """For each token of each text: whether the token before it may be a span's last."""
    _live: list[tuple[int, int]] = field(default_factory=list)
    """Text and index of each token that may come next."""
    _begun: bool = False

    def add_text(self, text: str) -> None:
        """Let spans of one more text be copied."""
        plain = " ".join(text.split())
        if not plain:
            return
        for number, ids in enumerate(self._encode(plain)):
            pieces = _pieces(ids, self.tokenizer)
            starts = [i for i, piece in enumerate(pieces) if piece[:1].isspace()]
            self._live += [(len(self.texts), i) for i in (starts if number == 0 else starts[:1])]
            self.texts.append(ids)
            self._ends.append(_ends(pieces))

    def _encode(self, plain: str) -> Iterable[list[int]]:
        """The text, then its parts after opening marks, each as it follows a space."""
        yield self.tokenizer.encode(f" {plain}")
        for match in _OPENED.finditer(plain):
            yield self.tokenizer.encode(f" {plain[match.start() :][:_OPENED_CHARS]}")

    def next_ids(self) -> Sequence[int]:
        """Return the tokens that may come next; those that end the answer are among them."""
        ids = {self.texts[text][i] for text, i in self._live if i < len(self.texts[text])}
        ends = [i == len(self.texts[text]) or self._ends[text][i] for text, i in self._live]
        if not ids or (self._begun and any(ends)):
            ids |= self.stop_ids
        return sorted(ids)

    def push(self, token_id: int) -> None:
        """Go on with one token that was allowed."""
        self._begun |= bool(self.tokenizer.decode([token_id]).strip())
        self._live = [
            (text, i + 1)
            for text, i in self._live
            if i < len(self.texts[text]) and self.texts[text][i] == token_id
        ]


def _pieces(ids: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    """The text that each token adds."""
    stream = tokenizer.text_stream()
    return [stream.push(token_id) for token_id in ids]


def _ends(pieces: Sequence[str]) -> list[bool]:
    """Say of each token whether a span may end before it: no word goes on with it."""
    ends, goes_on = [], False
    for before, piece in zip([" ", *pieces][-2::-1], reversed(pieces), strict=True):
        if piece:  # a token that adds nothing begins the character of the next
            goes_on = piece[0].isalnum()
        ends.append(bool(before) and not goes_on)
    return ends[::-1]
