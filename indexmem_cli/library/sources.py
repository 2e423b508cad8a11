"""What was read, as it was then: by this a memory is found again, and known to be stale."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from indexmem_cli.documents import Document
from indexmem_cli.documents.chats.slack import Folder
from indexmem_cli.documents.passages import hash_parts
from indexmem_cli.library.disk import feed
from indexmem_cli.library.manifest import SourceFile


def describe_files(documents: Sequence[Document]) -> tuple[SourceFile, ...]:
    """Look at every document as it is now, and read its bytes once.

    Raises:
        DocumentError: one cannot be read.
    """
    return tuple(map(_describe, documents))


def content_of(documents: Sequence[Document], files: Sequence[SourceFile]) -> str:
    """Return the hash of all that is read: the files in order, and what a folder calls them."""
    digest = hashlib.sha256()
    for document, file in zip(documents, files, strict=True):
        header = (document.header or "").encode("utf-8", "surrogatepass")
        digest.update(len(header).to_bytes(8, "big") + header + bytes.fromhex(file.sha256))
    return digest.hexdigest()


def path_of(source: str, documents: Sequence[Document]) -> str | None:
    """Where a source lies; None for a pipe and for a text in memory."""
    has_path = any(document.path for document in documents)
    return str(Path(source).absolute()) if has_path else None


def describe_changes(
    older: Sequence[SourceFile], newer: Sequence[SourceFile], has_grown: bool
) -> str:
    """Say in words how the files of a source differ from what they were."""
    if len(older) == len(newer) == 1:
        return "it has grown" if has_grown else "it has changed"
    before = {file.path: file.sha256 for file in older}
    after = {file.path: file.sha256 for file in newer}
    changed = [f.name for f in newer if before.get(f.path, f.sha256) != f.sha256]
    counts = {
        "changed": len(changed),
        "new": len(after.keys() - before.keys()),
        "gone": len(before.keys() - after.keys()),
    }
    what = ", ".join(f"{count:,} {how}" for how, count in counts.items() if count)
    named = f" ({', '.join(changed[:3])}{', …' if len(changed) > 3 else ''})" if changed else ""
    return f"of {len(newer):,} files {what or 'the order changed'}{named}"


def changed_while_read(files: Iterable[SourceFile]) -> list[str]:
    """Names of the files that have another size or time than they had when they were described."""
    return [file.name for file in files if file.path and _stamp(file.path) != _stamp_of(file)]


def changed_files(files: Iterable[SourceFile]) -> list[str]:
    """Names of the files that are gone, or hold something else than they did.

    A file is read only where its time differs but not its size.
    """
    return [file.name for file in files if file.path and _has_changed(file, file.path)]


def _describe(document: Document) -> SourceFile:
    path = document.path
    # Before the content: what is written meanwhile then shows in `changed_while_read`.
    stamp = _stamp(str(path), document.parts) if path else None
    size_bytes, mtime_ns = stamp or (document.size_bytes or 0, 0)
    where = str(path.absolute()) if path else None
    return SourceFile(document.name, where, document.sha256(), size_bytes, mtime_ns)


def _has_changed(file: SourceFile, path: str) -> bool:
    stamp = _stamp(path)
    if stamp is None or stamp[0] != file.size_bytes:
        return True
    return stamp != _stamp_of(file) and _sha256(path) != file.sha256


def _stamp_of(file: SourceFile) -> tuple[int, int]:
    return file.size_bytes, file.mtime_ns


def _stamp(path: str, parts: Sequence[Path] = ()) -> tuple[int, int] | None:
    """Size and time of a file, or of all that are one document; None if it is gone.

    Args:
        parts: the files of a document that is open; else they are looked for.
    """
    try:
        found = [file.stat() for file in parts or _parts_of(Path(path))]
    except OSError:
        return None
    return sum(each.st_size for each in found), max((each.st_mtime_ns for each in found), default=0)


def _parts_of(place: Path) -> list[Path]:
    """The files of a source as `Document.parts`; only a Slack export is a folder."""
    return Folder(place).paths if place.is_dir() else [place]


def _sha256(path: str) -> str | None:
    digest, place = hashlib.sha256(), Path(path)
    try:
        if place.is_dir():
            return hash_parts(place, _parts_of(place))
        feed(digest, place)
    except OSError:
        return None
    return digest.hexdigest()
