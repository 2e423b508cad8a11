"""The words of a text, as the archive's index knows them."""

import re

MAX_TERMS = 64
# Scripts without spaces between words are searched character by character.
_UNSPACED = re.compile("([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff])")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_WORD = re.compile(r"\w+")


def searchable(text: str) -> str:
    """Return a text as the index sees it: camelCase and scripts without spaces are taken apart."""
    text = text.replace("\0", " ")
    return _UNSPACED.sub(r" \1 ", _CAMEL.sub(" ", text))


def words_of(text: str) -> list[str]:
    """The different words of a text in lower case, in order."""
    words = _WORD.findall(searchable(text).replace("_", " "))
    return list(dict.fromkeys(word.lower() for word in words))


def terms_of(text: str) -> list[str]:
    """The first `MAX_TERMS` different words of a text: what is searched for."""
    return words_of(text)[:MAX_TERMS]
