"""What was read of what was asked for, counted after reading."""

from collections import Counter
from collections.abc import Sequence

from indexmem_cli.documents import Sources
from indexmem_cli.events import Coverage


def coverage_of(sources: Sources, tokens: int) -> Coverage:
    """What was read of the sources, which have been read to their end."""
    documents = sources.documents
    return Coverage(
        tokens_total=tokens,
        tokens_read=tokens,
        files_read=sum(document.skipped_as is None for document in documents),
        files_skipped=dict(sources.skipped),
        pages_total=sum(document.pages_total for document in documents),
        pages_read=sum(document.pages_read for document in documents),
        pages_without_text=tuple(p for d in documents for p in d.pages_without_text),
        pages_not_selected=sum(document.pages_not_selected for document in documents),
        messages_read=sum(document.messages_read for document in documents),
        messages_not_selected=sum(document.messages_not_selected for document in documents),
    )


def join_coverage(parts: Sequence[Coverage]) -> Coverage:
    """What was read of several sources together."""
    skipped: Counter[str] = Counter()
    for part in parts:
        skipped.update(part.files_skipped)
    counts = (
        *("tokens_total", "tokens_read", "files_read"),
        *("pages_total", "pages_read", "pages_not_selected"),
        *("messages_read", "messages_not_selected"),
    )
    return Coverage(
        **{name: sum(getattr(part, name) for part in parts) for name in counts},
        files_skipped=dict(skipped),
        pages_without_text=tuple(page for part in parts for page in part.pages_without_text),
    )


def describe_undecoded(sources: Sources) -> list[str]:
    """Say of which sources, after reading, some characters are lost; nothing where none are."""
    broken = [document for document in sources.documents if document.undecodable_chars]
    if not broken:
        return []
    count = sum(document.undecodable_chars for document in broken)
    named = ", ".join(document.name for document in broken[:3]) + ", …" * (len(broken) > 3)
    lost = f"{count:,} character{'s' * (count != 1)} of {named} cannot be decoded"
    return [f"{lost}; --encoding names another encoding"]
