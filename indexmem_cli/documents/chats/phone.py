"""Chats that WhatsApp and Signal export as text: a header, a message, perhaps more lines of it.

There is no schema: each phone writes dates in its own way.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime

from indexmem_cli.config import ReadConfig
from indexmem_cli.documents.chats.messages import MAX_MESSAGE_CHARS, Message, text_lines
from indexmem_cli.documents.passages import ByteSource, Damaged

_MARKS = dict.fromkeys((0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)))
_HEADER = re.compile(
    r"(?P<open>\[)?(?P<a>\d{1,4})(?P<mark>[-/.])\s?(?P<b>\d{1,2})(?P=mark)\s?(?P<c>\d{1,4})\.?"
    r"(?P<comma>[,،])?\s(?P<before>[^\d\n]{0,12}?)"
    r"(?P<hour>\d{1,2})[.:](?P<minute>\d{2})(?:[.:](?P<second>\d{2}))?"
    r"(?:[\s_]?(?P<after>[ap]\.?\s?m\.?))?(?P<close>\]|\s-|:)\s(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)
_AUTHOR = re.compile(r"(?:~\s)?(.+?):(?:\s(.*)|$)", re.DOTALL)
_AFTERNOON = re.compile(r"下午|午後|오후|م")
_MORNING = re.compile(r"上午|午前|오전|凌晨|ص")
_LOG_LEVEL = re.compile(r"(\S+[\s.])?(TRACE|DEBUG|INFO|NOTICE|WARN(ING)?|ERROR|FATAL|CRITICAL)")
_NOT_SENT_MARK = ": \u200e"  # so iPhones mark what they write in place of media
_NOT_SENT = re.compile(r"(?:omitted|weggelassen|omitid[oa]|omise?|omess[oa]|weggelaten)$")
_PLACEHOLDER = re.compile(
    r"<(?!attached)[^<>]{3,40}>|(?:this message was|you) deleted(?: this message)?\.?",
    re.IGNORECASE,
)
_ATTACHED = re.compile(r"<attached: (.+?)>|^(\S.*\.\w{2,5}) \([^()]+\)$", re.MULTILINE)
_MIN_HEADERS = 2


@dataclass(frozen=True, slots=True)
class _Header:
    """The parts of a header line, the date still as three numbers in unknown order."""

    date: tuple[int, int, int]
    digits: tuple[int, int, int]
    mark: str
    clock: tuple[int, int, int]
    rest: str
    line: str
    has_brackets: bool


def detect_phone(lines: Iterable[str]) -> str | None:
    """Return `whatsapp` or `signal` if the first lines of a text are such a chat."""
    headers: list[_Header] = []
    authored = levels = 0
    for line in lines:
        header = _parse_header(line)
        if header is None:
            if not headers and line.strip():
                return None  # an export begins with a message
            continue
        headers.append(header)
        author, text = _split_author(header.rest)
        authored += author is not None
        levels += _LOG_LEVEL.match(author or text) is not None
    if len(headers) < _MIN_HEADERS or not authored or 2 * levels >= len(headers):
        return None
    is_signal = all(h.has_brackets and h.mark == "-" and h.digits[0] == 4 for h in headers)
    return "signal" if is_signal else "whatsapp"


def read_phone(stream: ByteSource, config: ReadConfig) -> Iterator[Message]:
    """Yield the messages of a chat, after a first pass that settles the order of its dates."""
    orders = resolve_orders((h for *_, h in _headers(stream, config) if h), config.date_order)
    stream.seek(0)
    current: Message | None = None
    parts: list[str] = []
    num_chars = seen = 0
    for line, text, header in _headers(stream, config):
        moment = _moment(header, orders, config.date_order) if header else None
        if moment is not None or num_chars > MAX_MESSAGE_CHARS:
            if current is not None:
                yield _finish(current, parts)
            parts, num_chars = [], 0
        if header is not None and moment is not None:
            author, text = _split_author(header.rest)
            sent = _NOT_SENT_MARK not in header.line or not _NOT_SENT.search(text)
            current = Message("", author, moment, line=line)
            text = text if sent else ""
        if line == seen and parts:  # the next piece of a very long line
            parts[-1] += text
        else:
            parts.append(text)
        num_chars += len(text)
        seen = line
    if current is not None:
        yield _finish(current, parts)


def resolve_orders(headers: Iterable[_Header], wanted: str | None) -> dict[str, str]:
    """Find for each separator of dates whether the day or the month comes first.

    A number above 12 is a day; dates of a chat do not run backwards; points come with days
    first. Where neither tells, the caller must say.

    Raises:
        Damaged: the order cannot be known.
    """
    days_first: Counter[str] = Counter()
    months_first: Counter[str] = Counter()
    steps_back: dict[str, Counter[str]] = {}
    last: dict[tuple[str, str], tuple[int, ...]] = {}
    unclear: dict[str, tuple[int, int, int]] = {}
    for header in headers:
        mark, (a, b, c) = header.mark, header.date
        if header.digits[0] == 4:
            continue
        days_first[mark] += a > 12
        months_first[mark] += b > 12
        if a != b:
            unclear.setdefault(mark, header.date)
        for order, date in (("dmy", (c, b, a)), ("mdy", (c, a, b))):
            moment = (*date, *header.clock)
            steps_back.setdefault(mark, Counter())[order] += moment < last.get((mark, order), ())
            last[mark, order] = moment
    orders = {}
    for mark, back in steps_back.items():
        if wanted:
            orders[mark] = wanted
        elif days_first[mark] != months_first[mark]:
            orders[mark] = "dmy" if days_first[mark] > months_first[mark] else "mdy"
        elif back["dmy"] != back["mdy"]:
            orders[mark] = min(back, key=back.__getitem__)
        elif mark == "." or mark not in unclear:
            orders[mark] = "dmy"
        else:
            shown = mark.join(map(str, unclear[mark]))
            raise Damaged(
                f"{shown} may have its day or its month first, and nothing in the file tells",
                "say which with --date-order dmy, mdy or ymd",
                "unclear dates",
            )
    return orders


def _headers(stream: ByteSource, config: ReadConfig) -> Iterator[tuple[int, str, _Header | None]]:
    seen = 0
    for line, text in text_lines(stream, config):
        yield line, text, None if line == seen else _parse_header(text)
        seen = line


def _parse_header(line: str) -> _Header | None:
    match = _HEADER.fullmatch(line.translate(_MARKS).replace("\u202f", " ").strip())
    if match is None or bool(match["open"]) != (match["close"] == "]"):
        return None
    part_of_day = match["before"] + (match["after"] or "")
    is_asian = _AFTERNOON.search(part_of_day) or _MORNING.search(part_of_day)
    if len(match["a"]) == 4 and not match["comma"] and not is_asian:
        return None  # so do the logs of programs begin
    hour = int(match["hour"])
    is_afternoon = _AFTERNOON.search(part_of_day) or (match["after"] or "")[:1].lower() == "p"
    if match["after"] or is_asian:
        hour = hour % 12 + 12 * bool(is_afternoon)
    return _Header(
        date=(int(match["a"]), int(match["b"]), int(match["c"])),
        digits=(len(match["a"]), len(match["b"]), len(match["c"])),
        mark=match["mark"],
        clock=(hour, int(match["minute"]), int(match["second"] or 0)),
        rest=match["rest"],
        line=line,
        has_brackets=bool(match["open"]),
    )


def _moment(header: _Header, orders: dict[str, str], wanted: str | None) -> datetime | None:
    """Return the time of a message; None if the numbers are no date, so the line is no header.

    Raises:
        Damaged: they are none in the order that the user wants.
    """
    first, second, third = header.date
    if header.digits[0] == 4:
        tried = [(first, second, third)]
    else:
        year = third if header.digits[2] == 4 else 2000 + third
        tried = [(year, second, first), (year, first, second)]
        if orders[header.mark] == "ymd":
            tried = [(2000 + first % 100, second, third)]
        elif orders[header.mark] == "mdy":
            tried.reverse()
    for date in tried[:1] if wanted else tried:
        try:
            return datetime(*date, *header.clock)
        except ValueError:
            continue
    if wanted:
        shown = header.mark.join(map(str, header.date))
        raise Damaged(f"line {header.line[:40]!r}: {shown} is no date with --date-order {wanted}")
    return None


def _split_author(rest: str) -> tuple[str | None, str]:
    """Split `Ann: text`; a name with quotes is no name but `Ann created group "x: y"`."""
    match = _AUTHOR.fullmatch(rest)
    if match is None or re.search('["“”„«]', match[1]):
        return None, rest
    return match[1].strip(), match[2] or ""


def _finish(message: Message, parts: list[str]) -> Message:
    text = "\n".join(parts).translate(_MARKS).strip()
    if _PLACEHOLDER.fullmatch(text):
        text = ""
    return replace(message, text=_ATTACHED.sub(lambda m: f"[{m[1] or m[2]}]", text))
