"""The one place where untrusted text (of models, documents, file names) is made safe to show."""

# Per character and without state, so that a stream is filtered the same wherever it is split.
_DROPPED = (
    *(code for code in range(0x20) if chr(code) not in "\n\t"),  # C0: escape sequences begin here
    *range(0x7F, 0xA0),  # DEL and C1, the one-byte escapes
    *(0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)),  # bidi
    *(0x2028, 0x2029),  # line and paragraph separators
    *range(0xE0000, 0xE0080),  # tags: invisible text
)
_SAFE: dict[int, str | None] = {
    **dict.fromkeys(_DROPPED),
    # Halves of characters, as in undecodable file names: no terminal can be sent these.
    **dict.fromkeys(range(0xD800, 0xE000), "\ufffd"),
}


def safe_text(text: str) -> str:
    """Drop everything that a terminal could take for a command; keep newlines and tabs."""
    return text.translate(_SAFE)


def safe_line(text: str) -> str:
    """Make text safe and put it on one line, as names and quotes need."""
    return " ".join(safe_text(text).split())
