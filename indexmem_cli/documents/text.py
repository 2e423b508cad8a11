"""Text of any encoding and any length, as passages. A line is never held whole in memory."""

import codecs
import io
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import PurePath

from indexmem_cli.documents.passages import ByteSource, Damaged, FileDocument, Passage, Place
from indexmem_cli.documents.spots import with_headings, with_rows, with_symbols
from indexmem_cli.documents.symbols import MAX_PARSED_BYTES, find_symbols, has_symbols
from indexmem_cli.documents.wrapped import join_wrapped

SNIFF_BYTES = 1 << 16
BLOCK_BYTES = 1 << 16
MAX_PASSAGE_CHARS = 1024
"""Longer lines are cut. Small, because a memory that keeps one token keeps its whole passage."""

_MAX_BLANK_CHARS = 1024
_MAX_ESCAPE_CHARS = 1024
_BOMS = (  # UTF-32 first: its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LEGACY_ENCODINGS = (  # the common ones: among all of them the statistics often choose a rare one
    *("cp1252", "cp1250", "cp1251", "cp1253", "cp1255", "cp1256", "koi8_r"),
    *("cp932", "euc_jp", "cp949", "gb18030", "big5"),
)
_ANSI = re.compile(
    r"\x1b(?:"
    r"\[[0-?]{0,64}[ -/]{0,8}[@-~]"  # colours, cursor movements
    r"|[]PX^_][^\x07\x1b\n]{0,1000}(?:\x07|\x1b\\)"  # titles, links, device strings
    r"|[ -/]{0,8}[0-OQ-WYZ\\`-~])"  # two-character sequences
)
_UNWANTED = re.compile(r"[\0-\x08\x0b-\x1f\x7f\ud800-\udfff]")
_TO_CLEAN = dict.fromkeys((*range(9), *range(11, 32), 127))
_TO_CLEAN |= dict.fromkeys(range(0xD800, 0xE000), "\ufffd")
_CONTROL_BYTES = bytes(set(range(32)) - set(b"\b\t\n\f\r\x1b"))

_KINDS = {
    **dict.fromkeys((".md", ".markdown", ".mdx"), "markdown"),
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    **dict.fromkeys((".jsonl", ".ndjson"), "jsonl"),
}
_CODE = (
    ".py .pyi .pyx .ipynb .js .mjs .cjs .jsx .ts .tsx .vue .svelte .c .h .cc .cpp .cxx .hh .hpp"
    " .cu .cuh .m .mm .rs .go .java .kt .kts .scala .groovy .gradle .swift .cs .fs .vb .rb .php"
    " .pl .pm .lua .r .jl .hs .ml .mli .ex .exs .erl .clj .lisp .el .sh .bash .zsh .fish .ps1 .bat"
    " .sql .css .scss .sass .less .html .htm .xml .svg .proto .thrift .graphql .tf .nix .cmake .mk"
    " .toml .yaml .yml .ini .cfg .zig .nim .dart .asm .s .v .sv .vhd .f90 .f"
)
_CODE_SUFFIXES = frozenset(_CODE.split())
_CODE_NAMES = {"Makefile", "Dockerfile", "CMakeLists.txt", "Justfile", "Rakefile", "Gemfile"}


class TextDocument(FileDocument):
    """A text file, a source file, or text from a pipe."""

    def __init__(
        self,
        name: str,
        kind: str,
        size_bytes: int | None,
        open_bytes: Callable[[], AbstractContextManager[ByteSource]],
        encoding: str | None = None,
    ) -> None:
        super().__init__(name, kind, size_bytes, open_bytes)
        self._encoding = encoding

    def _read(self) -> Iterator[Passage]:
        symbols = self._symbols()
        with self._stream() as stream:
            passages = split_passages(clean_blocks(self._decode(stream)), self.name)
            if symbols:
                passages = with_symbols(passages, symbols)
            elif self.kind == "markdown":
                passages = join_wrapped(with_headings(passages))
            elif self.kind in ("csv", "jsonl"):
                passages = with_rows(passages, are_quoted=self.kind == "csv")
            elif self.kind != "code":
                passages = join_wrapped(passages)
            yield from passages

    def _symbols(self) -> dict[int, str]:
        """Parse source code, which is short enough to be read twice."""
        suffix = PurePath(self.name).suffix
        size = self.size_bytes or 0
        if self.kind != "code" or not has_symbols(suffix) or not 0 < size <= MAX_PARSED_BYTES:
            return {}
        with self._open_bytes() as stream:
            source = "".join(decode_blocks(stream, self._encoding))
        return find_symbols(source.encode("utf-8", "replace"), suffix)

    def _decode(self, stream: ByteSource) -> Iterator[str]:
        for text in decode_blocks(stream, self._encoding):
            self.undecodable_chars += text.count("\ufffd")
            yield text


def kind_of(name: str) -> str:
    """Tell text, Markdown and code apart by the name of a file; it changes no text."""
    path = PurePath(name)
    kind = _KINDS.get(path.suffix.lower())
    if kind:
        return kind
    return "code" if path.suffix.lower() in _CODE_SUFFIXES or path.name in _CODE_NAMES else "text"


def is_pdf(head: bytes) -> bool:
    """Tell whether a file begins as a PDF, perhaps after some junk (as readers accept).

    The mark counts only at the start, at a line start or after a byte that is not text, so that
    a program which mentions it is not taken for one.
    """
    return re.search(rb"(?:\A|[\r\n\0-\x08\x80-\xff])\s*%PDF-\d", head[:1024]) is not None


def is_binary(head: bytes) -> bool:
    """Tell whether the first bytes of a file are not text: a NUL, or many control characters."""
    if any(head.startswith(bom) for bom, _ in _BOMS):
        return False
    controls = len(head) - len(head.translate(None, _CONTROL_BYTES))
    return b"\0" in head or controls * 20 > len(head)


def detect_encoding(sample: bytes) -> str:
    """Name the encoding of a sample that is not pure ASCII: byte-order mark, UTF-8, statistics.

    Text that is mostly UTF-8 is UTF-8 with errors: in other encodings its multi-byte sequences
    hardly ever arise by chance.
    """
    for bom, name in _BOMS:
        if sample.startswith(bom):
            return name
    # Incremental: the sample may end within a character.
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(sample)
    num_wrong = text.count("\ufffd")
    if sum(char > "\x7f" for char in text) - num_wrong >= num_wrong:
        return "utf-8"

    from charset_normalizer import from_bytes

    telling = b"\n".join(line for line in sample.splitlines() if not line.isascii())
    matches = from_bytes(telling, cp_isolation=list(_LEGACY_ENCODINGS))
    best = matches.best()
    if best is None:
        return "cp1252"
    # In a short text the commonest of the encodings that fit equally well is the likeliest.
    likely = [match.encoding for match in matches if match.chaos <= best.chaos]
    return "cp1252" if "cp1252" in likely else best.encoding


def decode_blocks(stream: ByteSource, encoding: str | None) -> Iterator[str]:
    r"""Decode a stream piece by piece, with every line end as \n.

    The encoding is chosen at the first block that is not ASCII, which until then is the same in
    all of them. Bytes that cannot be decoded become U+FFFD.

    Raises:
        Damaged: the encoding that is named cannot be that of this text.
    """
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    if encoding is not None and codecs.lookup(encoding).name == "utf-8":
        encoding = "utf-8-sig"  # takes a byte-order mark off, if there is one
    decoder = codecs.getincrementaldecoder(encoding)("replace") if encoding else None
    try:
        while block := stream.read(BLOCK_BYTES):
            if decoder is None and not block.isascii():
                decoder = codecs.getincrementaldecoder(detect_encoding(block))("replace")
            text = decoder.decode(block) if decoder else block.decode("ascii")
            yield newlines.decode(text)
        yield newlines.decode(decoder.decode(b"", True) if decoder else "", final=True)
    except UnicodeError as error:  # of the few codecs that replace nothing
        raise Damaged(
            f"it cannot be read as {encoding} ({error})", "name another one with --encoding"
        ) from error


def clean(text: str) -> str:
    r"""Remove terminal escape sequences and control characters but \t and \n.

    Lone surrogates, which no tokenizer takes, become U+FFFD.
    """
    if "\x1b" in text:
        text = _ANSI.sub("", text)
    return text.translate(_TO_CLEAN) if _UNWANTED.search(text) else text


def clean_blocks(blocks: Iterable[str]) -> Iterator[str]:
    """Clean text that comes in pieces; the result does not depend on where they end."""
    held = ""
    for block in blocks:
        text = held + block
        escape = text.find("\x1b", max(0, len(text) - _MAX_ESCAPE_CHARS))
        # An escape sequence may go on in the next block.
        end = len(text) if escape < 0 else escape
        held = text[end:]
        yield clean(text[:end])
    yield clean(held)


def split_passages(blocks: Iterable[str], file: str) -> Iterator[Passage]:
    """Split clean text into passages of at most 1024 characters and their blank lines.

    Blank lines before the first text, and what of a run of blank lines is beyond 1024
    characters, are dropped; nothing else is.
    """
    text, place = "", None
    for piece, line in number_lines(blocks):
        if not piece.isspace():
            if place is not None:
                yield Passage(text, place)
            text, place = piece, Place(file, None, None, line)
        elif len(text) < MAX_PASSAGE_CHARS + _MAX_BLANK_CHARS:
            text += piece
    if place is not None:
        yield Passage(text, place)


def number_lines(blocks: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Yield each line with its end and its number; a long line in pieces of the same number."""
    line, rest = 1, ""
    for block in blocks:
        *whole, rest = (rest + block).split("\n")
        for text in whole:
            *parts, last = cut_line(text)
            yield from ((part, line) for part in parts)
            yield last + "\n", line
            line += 1
        *parts, rest = cut_line(rest)
        yield from ((part, line) for part in parts)
    if rest:
        yield rest, line


def line_passages(line: str, place: Place, end: str) -> Iterator[Passage]:
    """Make passages of a line, however long; `end` follows the last."""
    *parts, last = cut_line(line)
    yield from (Passage(part, place) for part in parts)
    yield Passage(last + end, place)


def cut_line(line: str) -> list[str]:
    """Cut a long line before the last white space that fits, else anywhere.

    The cuts depend on what is before them alone, so a line may come in pieces.
    """
    parts, start = [], 0
    while len(line) - start > MAX_PASSAGE_CHARS:
        end = start + MAX_PASSAGE_CHARS
        for at in range(end, start + MAX_PASSAGE_CHARS // 2, -1):
            if line[at].isspace() and not line[at - 1].isspace():
                end = at
                break
        parts.append(line[start:end])
        start = end
    return [*parts, line[start:]]
