"""The one form that messages of every program take, and how they read as text."""

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from indexmem_cli.config import ReadConfig
from indexmem_cli.documents.passages import (
    ByteSource,
    Damaged,
    ParsedDocument,
    Passage,
    Place,
)
from indexmem_cli.documents.text import (
    clean,
    clean_blocks,
    decode_blocks,
    line_passages,
    number_lines,
)

MAX_MESSAGE_CHARS = 1_000_000
"""Longer messages are cut into several of the same author and time."""

NOT_SELECTED = "not selected"
"""The reason why a file is not read of which no message was asked for."""

_AUTHORS_NAMED = 12
_REPLIES_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class Message:
    """One message as it was sent, in whatever program."""

    text: str
    author: str | None = None
    """None where the program itself speaks: someone joined, the subject was changed."""
    ts: datetime | timedelta | str | None = None
    """Wall-clock time as the source gives it, without its time zone; in a recording, the time
    since its beginning; as text where there is no date."""
    channel: str | None = None
    reply_to: str | None = None
    """`id` of the message that this one answers."""
    id: str | None = None
    line: int | None = None
    """Line of the file; None where the source has no lines."""


Reader = Callable[[ByteSource, ReadConfig], Iterable[Message]]


class MessageDocument(ParsedDocument):
    """A file of messages."""

    def __init__(self, *about: Any) -> None:
        super().__init__(*about)
        self.has_messages = True

    def _read(self) -> Iterator[Passage]:
        with self._stream() as stream:
            yield from self._select(self._reader(stream, self._config))

    def _select(self, messages: Iterable[Message]) -> Iterator[Passage]:
        authors: dict[str, None] = {}  # in order, and each once
        answered: OrderedDict[str, str] = OrderedDict()
        for number, message in enumerate(_whole(messages), 1):
            author = _one_line(message.author) or None
            if author and len(authors) < _AUTHORS_NAMED:
                authors[author] = None
            if message.id and author:
                answered[message.id] = author
                if len(answered) > _REPLIES_REMEMBERED:
                    answered.popitem(last=False)
            if not is_selected(message, self._config):
                self.messages_not_selected += 1
                continue
            self.messages_read += 1
            self.undecodable_chars += message.text.count("\ufffd")
            place = Place(
                self.name,
                page=None,
                page_label=None,
                line=message.line or number,
                unit="line" if message.line else "message",
                member=_one_line(message.channel) or None,
                author=author,
                time=show_time(message.ts),
            )
            yield from write_message(message, place, answered.get(message.reply_to or ""))
        if self.messages_not_selected and not self.messages_read:
            raise Damaged(
                f"none of its {self.messages_not_selected:,} messages is selected",
                f"among its authors are {', '.join(authors)}" if authors else None,
                NOT_SELECTED,
            )


def is_selected(message: Message, config: ReadConfig) -> bool:
    """Tell whether a message is by one of the authors asked for, and of the time asked for.

    An author is named as a whole or by any word of the name, in either case of letters. A message
    without a date is of no time.
    """
    if config.authors:
        name = _one_line(message.author).casefold()
        words = {name, *re.findall(r"[^\s<>()]+", name)}
        if words.isdisjoint(wanted.casefold() for wanted in config.authors):
            return False
    if config.since or config.until:
        if not isinstance(message.ts, datetime):
            return False
        moment = message.ts.replace(tzinfo=None)
        return (config.since or moment) <= moment <= (config.until or moment)
    return True


def show_time(ts: datetime | timedelta | str | None) -> str | None:
    """Write a time as `2024-03-05 14:02`, a time in a recording as `00:14:02`."""
    if isinstance(ts, datetime):
        return f"{ts.year:04}-{ts.month:02}-{ts.day:02} {ts.hour:02}:{ts.minute:02}"
    if isinstance(ts, timedelta):
        seconds = int(ts.total_seconds())
        return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return ts


def text_lines(stream: ByteSource, config: ReadConfig) -> Iterator[tuple[int, str]]:
    """Decode and clean a text; yield its lines without line ends, each with its number.

    A very long line comes in pieces of the same number.
    """
    for text, line in number_lines(clean_blocks(decode_blocks(stream, config.encoding))):
        yield line, text.removesuffix("\n")


def wall_clock(text: str | None) -> datetime | None:
    """Read an ISO 8601 time, dropping its zone; None if it is none."""
    from dateutil.parser import isoparse

    try:
        moment: datetime = isoparse(text or "").replace(tzinfo=None)
    except (ValueError, TypeError, OverflowError):
        return None
    return moment


def epoch(seconds: float | str | None) -> datetime | None:
    """Return the UTC time of seconds since 1970, dropping its zone; None if it is none."""
    try:
        return datetime(1970, 1, 1) + timedelta(seconds=float(seconds or "nan"))
    except (ValueError, TypeError, OverflowError):
        return None


def _whole(messages: Iterable[Message]) -> Iterator[Message]:
    """Pass messages that hold text; say what is wrong if there are none at all."""
    found = False
    for message in messages:
        if message.text and not message.text.isspace():
            found = True
            yield message
    if not found:
        raise Damaged("there is no message in it")


def write_message(message: Message, place: Place, replied: str | None = None) -> Iterator[Passage]:
    """Write `[2024-03-05 14:02] <Ann> text`; further lines are indented.

    So nothing that a message says can be taken for another message.
    """
    opening = f"[{place.time}] " if place.time else ""
    opening += f"<{re.sub('[<>]', '', place.author)}> " if place.author else "* "
    if replied:
        opening += f"(to {replied}) "
    text = clean(message.text.replace("\r\n", "\n").replace("\r", "\n")).strip()
    for number, line in enumerate(text.split("\n")):
        if not line.strip():
            continue
        if number and message.line:
            place = replace(place, line=message.line + number)
        lead = "  " if number else opening
        yield from line_passages(lead + line.rstrip(), place, "\n")


def _one_line(text: str | None) -> str:
    return " ".join(clean(str(text or "")).split())
