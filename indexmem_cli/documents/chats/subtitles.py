"""Transcripts with times: WebVTT and SRT, of films and of meetings."""

import html
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta

from indexmem_cli.config import ReadConfig
from indexmem_cli.documents.chats.messages import Message, text_lines
from indexmem_cli.documents.passages import ByteSource, Damaged

_TIME = r"(?:(\d{1,3}):)?(\d{2}):(\d{2})[.,](\d{3})"
_CUE = re.compile(rf"\s*{_TIME}\s+-->\s+{_TIME}(?:\s.*)?")
_BROKEN_CUE = re.compile(r"\s*[\d:.,]+\s*-->")
_VOICE = re.compile(r"<v(?:\.[^\s>]*)?\s+([^>]+)>")
_TAG = re.compile(r"</?[a-zA-Z][^<>]{0,80}>|<[\d:.]+>|\{\\[^{}]{0,40}\}")
_NAME = re.compile(r"((?:[^\W\d_][\w.'’-]*\s?){1,4}):\s+(?=\S)")
_MAX_PAUSE = timedelta(seconds=3)
_MAX_CHARS = 400


@dataclass
class _Speech:
    """Cues of one speaker that follow each other."""

    line: int
    start: timedelta
    end: timedelta
    author: str | None
    lines: list[str] = field(default_factory=list)

    def message(self) -> Message:
        return Message(" ".join(self.lines), self.author, self.start, line=self.line)


def detect_subtitles(lines: Iterable[str]) -> str | None:
    """Return `vtt` or `srt` if a text begins as such a file."""
    head = [line for line in lines if line.strip()][:3]
    if head and re.fullmatch(r"WEBVTT(?:\s.*)?", head[0]):
        return "vtt"
    is_srt = len(head) > 1 and head[0].strip().isdecimal() and _CUE.fullmatch(head[1])
    return "srt" if is_srt else None


def read_subtitles(stream: ByteSource, config: ReadConfig) -> Iterator[Message]:
    """Yield what was said, joining cues of one speaker up to the end of a sentence.

    A line that the next cue repeats, as in captions that roll, is taken once.
    """
    current: _Speech | None = None
    shown: list[str] = []  # the lines of the cue before
    for line, start, end, author, texts in _cues(stream, config):
        new = [text for text in texts if text not in shown]
        shown = texts
        if not new:
            continue
        if current is not None and not _goes_on(current, author, start):
            yield current.message()
            current = None
        if current is None:
            current = _Speech(line, start, end, author)
        current.lines += new
        current.end = end
    if current is not None:
        yield current.message()


def _goes_on(speech: _Speech, author: str | None, start: timedelta) -> bool:
    text = speech.lines[-1]
    return (
        author == speech.author
        and start - speech.end <= _MAX_PAUSE
        and not text.endswith((".", "?", "!", "…", "。"))
        and sum(map(len, speech.lines)) < _MAX_CHARS
    )


def _cues(
    stream: ByteSource, config: ReadConfig
) -> Iterator[tuple[int, timedelta, timedelta, str | None, list[str]]]:
    """Yield line, begin, end, speaker and text lines of each cue; notes and styles have none."""
    first: tuple[int, timedelta, timedelta] | None = None
    lines: list[str] = []
    for number, line in text_lines(stream, config):
        match = _CUE.fullmatch(line)
        if match:
            if first is not None:
                yield (*first, *_spoken(lines))
            first, lines = (number, _offset(match, 0), _offset(match, 4)), []
        elif not line.strip():
            if first is not None:
                yield (*first, *_spoken(lines))
            first, lines = None, []
        elif _BROKEN_CUE.match(line):
            raise Damaged(f"line {number}: {line.strip()[:60]!r} has no times that can be read")
        elif first is not None:
            lines.append(line)
    if first is not None:
        yield (*first, *_spoken(lines))


def _spoken(lines: list[str]) -> tuple[str | None, list[str]]:
    """Split the speaker off: `<v Ann>text`, or `Ann: text`."""
    text = "\n".join(lines)
    voice = _VOICE.search(text)
    text = html.unescape(_TAG.sub("", _VOICE.sub("", text)))
    name = None if voice else _NAME.match(text)
    found = voice or name
    author = found[1].strip() if found else None
    texts = (text[name.end() :] if name else text).split("\n")
    return author, [" ".join(row.split()) for row in texts if row.strip()]


def _offset(match: re.Match[str], first: int) -> timedelta:
    hours, minutes, seconds, thousandths = match.groups()[first : first + 4]
    return timedelta(
        hours=int(hours or 0),
        minutes=int(minutes),
        seconds=int(seconds),
        milliseconds=int(thousandths),
    )
