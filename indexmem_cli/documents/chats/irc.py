"""IRC logs of irssi and WeeChat, and others that write `[12:30] <nick> text`."""

import re
from collections.abc import Iterable, Iterator
from datetime import datetime

from indexmem_cli.config import ReadConfig
from indexmem_cli.documents.chats.messages import Message, text_lines, wall_clock
from indexmem_cli.documents.passages import ByteSource

_LINE = re.compile(
    r"\[?(?:(?P<date>\d{4}-\d\d-\d\d)[ T])?(?P<clock>\d\d:\d\d(?::\d\d)?)\]?\s+"
    r"(?:<(?P<rank>[ @+%&~]?)(?P<nick>[^<>\s]{1,64})>\s?(?P<text>.*)"
    r"|\*\s(?P<actor>\S{1,64})\s(?P<action>.*)"
    r"|-!-\s(?P<event>.*))"
)
_DAY = re.compile(r"--- (?:Log opened|Day changed) (.+)")
_IRSSI_MARK = re.compile(r"--- Log (?:opened|closed) |--- Day changed ")
_WEECHAT = re.compile(
    r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(?:\.\d+)?Z?\t(?P<prefix>[^\t]*)\t(?P<text>.*)"
)
_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_EVENT_MARKS = {"-->", "<--", "--", "<->", "=!=", ""}
_RANKS = "@+%&~ "
_MIN_SHARE = 0.8


def detect_irc(lines: Iterable[str]) -> str | None:
    """Return `irc` or `weechat` if nearly all of the first lines are such a log."""
    lines = [line for line in lines if line.strip()]
    if len(lines) < 2:
        return None
    if sum(bool(_WEECHAT.fullmatch(line)) for line in lines) >= _MIN_SHARE * len(lines):
        return "weechat"
    marks = sum(bool(_IRSSI_MARK.match(line)) for line in lines)
    said = sum(bool(_LINE.fullmatch(line)) for line in lines)
    has_nicks = any((match := _LINE.fullmatch(line)) and match["nick"] for line in lines)
    return "irc" if has_nicks and said + marks >= _MIN_SHARE * len(lines) else None


def read_irc(stream: ByteSource, config: ReadConfig) -> Iterator[Message]:
    """Yield what was said, done (`* Ann waves`) and announced; dates are those of the marks."""
    today: datetime | None = None
    for number, line in text_lines(stream, config):
        day = _DAY.match(line)
        if day:
            today = _parse_day(day[1]) or today
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            if line.strip() and not _IRSSI_MARK.match(line):
                yield Message(line, line=number)
            continue
        date = wall_clock(match["date"]) if match["date"] else today
        ts = _at(date, match["clock"])
        if match["nick"]:
            yield Message(match["text"], match["nick"], ts, line=number)
        elif match["actor"]:
            action = f"{match['actor']} {match['action']}"
            yield Message(action, match["actor"].lstrip(_RANKS), ts, line=number)
        else:
            yield Message(match["event"], None, ts, line=number)


def read_weechat(stream: ByteSource, config: ReadConfig) -> Iterator[Message]:
    """Yield the lines of a WeeChat log, whose columns are separated by tabs."""
    for number, line in text_lines(stream, config):
        match = _WEECHAT.fullmatch(line)
        if match is None:
            if line.strip():
                yield Message(line, line=number)
            continue
        prefix, text = match["prefix"].strip(), match["text"]
        author = None if prefix in _EVENT_MARKS else prefix.lstrip(_RANKS)
        if prefix == "*":
            author = text.split(" ", 1)[0]
        yield Message(text, author, wall_clock(match[1]), line=number)


def _at(date: datetime | None, clock: str) -> datetime | str | None:
    """Join date and time; the time alone where the log has no dates."""
    hour, minute, *second = map(int, clock.split(":"))
    if hour > 23 or minute > 59 or (second and second[0] > 59):
        return clock
    if date is None:
        return clock[:5]
    return date.replace(hour=hour, minute=minute, second=second[0] if second else 0)


def _parse_day(text: str) -> datetime | None:
    """Read `Tue Mar 05 09:12:41 2024` or `Wed Mar 06 2024`."""
    match = re.match(r"\w+ (\w{3}) (\d{1,2}) (?:[\d:]+ )?(\d{4})", text)
    if match is None or match[1].lower() not in _MONTHS:
        return None
    try:
        return datetime(int(match[3]), _MONTHS.index(match[1].lower()) + 1, int(match[2]))
    except ValueError:
        return None
