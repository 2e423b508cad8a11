"""What a saved memory says of itself: `manifest.json`, written last, checked before all else.

The file is {"checksum": BLAKE2b of the canonical JSON of the rest, "manifest": {...}}. That much
holds for every format version, so that damage is never taken for another version.
"""

import json
import re
import types
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any, Union, get_args, get_origin, get_type_hints

from indexmem_cli import __version__
from indexmem_cli.config import NO_LATENT, TEXT
from indexmem_cli.errors import MemoryFileError
from indexmem_cli.library.disk import blake2b

FORMAT = 1
MAX_MANIFEST_BYTES = 64 << 20
ID = re.compile(r"[0-9a-f]{12}")
PART = re.compile(r"(?:state|text|kv)-[0-9a-f]{8}\.(?:safetensors|sqlite)")


@dataclass(frozen=True)
class Key:
    """All that a memory depends on: the same key, the same memory."""

    content: str
    """Hash of the documents, in order."""
    model: str
    """Revision of the weights."""
    tokenizer: str
    """Hash of the tokenizer and of the prompt before the document."""
    settings: dict[str, str | int | None]
    """Every setting that changes what is read or kept."""
    adapter: str | None = None
    """Hash of what was trained for reading, where there is any."""
    question: str | None = None
    """The question that decided what was kept, where one did."""

    @property
    def id(self) -> str:
        """Name of the memory and of its folder: 12 hexadecimal digits."""
        return _digest(asdict(self))[:12]


@dataclass(frozen=True)
class SourceFile:
    """One file as it was when it was read."""

    name: str
    """As it was named to the user; inside a folder with the folder's name before it."""
    path: str | None
    """Where it lies; None for a pipe."""
    sha256: str
    size_bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class Part:
    """A file of the memory."""

    size_bytes: int
    blake2b: str


@dataclass(frozen=True)
class SavedState:
    """What was kept after so many chunks; the last one of a memory is after all of them."""

    part: str
    """Name of the file."""
    chunks: int
    tokens: int
    """Tokens of text read by then, without the prompt's opening."""
    layout: dict[str, Any]
    """What the file does not say of itself; see `memory/store.py`."""

    @property
    def shards(self) -> tuple[str, ...]:
        """Names of the files of all keys and values up to there, where they are stored."""
        return tuple(self.layout.get("shards", ()))

    @property
    def files(self) -> tuple[str, ...]:
        """All files that it needs."""
        return (self.part, *self.shards)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A whole saved memory, or a checkpoint of one; as it is made, nothing is read."""

    key: Key
    name: str | None
    source: str
    """As the user named it: a file, a folder, or `-`."""
    path: str | None
    """Where the source lies; None for a pipe."""
    files: tuple[SourceFile, ...] = ()
    model: str
    """Name of the model."""
    tokens: int = 0
    """Tokens of text read."""
    chain: tuple[str, ...] = ()
    """For every chunk the hash of all tokens up to its end, 16 hexadecimal digits."""
    states: tuple[SavedState, ...] = ()
    """Ascending; the last one is what answers, those before it are what a grown text goes on
    from."""
    archive: str | None = None
    """Name of the file of the text; None in a checkpoint."""
    parts: dict[str, Part] = field(default_factory=dict)
    """Every file of the memory by its name, but for the manifest."""
    coverage: dict[str, Any] = field(default_factory=dict)
    """What was read of what was asked for: the fields of `Coverage`."""
    read_s: float = 0.0
    created_s: float = 0.0
    """When it was saved, in seconds since 1970."""
    version: str = __version__
    """Version of indexmem that wrote it."""
    format: int = FORMAT

    @property
    def id(self) -> str:
        """Name of the folder: 12 hexadecimal digits."""
        return self.key.id

    @property
    def recall_from(self) -> str:
        """What passages of it are recalled from: one of `RECALL_FROM`."""
        return str(self.key.settings.get("recall_from", TEXT))

    @property
    def policy(self) -> str:
        """What decided what it keeps: one of `POLICIES`."""
        return str(self.key.settings.get("policy"))

    @property
    def latent(self) -> str:
        """What took in the tokens that it evicted: one of `LATENTS`."""
        return str(self.key.settings.get("latent", NO_LATENT))

    @property
    def num_bytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.size_bytes for part in self.parts.values())

    def renamed(self, name: str | None) -> "Manifest":
        """Return the manifest with another name."""
        return replace(self, name=name)

    def dump(self) -> bytes:
        """Return the file's content."""
        data = asdict(self)
        return json.dumps({"checksum": _digest(data), "manifest": data}).encode()


def parse_manifest(data: bytes, memory_id: str) -> Manifest:
    """Read and check the content of a `manifest.json`.

    Raises:
        MemoryFileError: it is damaged, of another version, or of another memory.
    """
    try:
        outer = json.loads(data)
        checksum, inner = outer["checksum"], outer["manifest"]
        if checksum != _digest(inner):
            raise ValueError("its checksum does not fit")
        if inner["format"] != FORMAT:
            raise wrong_version(memory_id, inner["format"])
        manifest: Manifest = _build(Manifest, inner)
        _check_parts(manifest)
    # RecursionError: brackets nested deeper than any manifest's.
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(memory_id, f"its manifest cannot be read ({error})") from error
    if manifest.id != memory_id:
        raise damaged(memory_id, f"its manifest is that of memory {manifest.id}")
    return manifest


def damaged(memory_id: str, what: str) -> MemoryFileError:
    """Say that a memory cannot be used, and how to be rid of it."""
    return MemoryFileError(
        f"memory {memory_id} is damaged: {what}",
        f"indexmem memories rm {memory_id} --yes, then ask or ingest again",
    )


def wrong_version(memory_id: str, found: object) -> MemoryFileError:
    """Say that a memory is of another format version."""
    newer = isinstance(found, int) and found > FORMAT
    return MemoryFileError(
        f"memory {memory_id} has format {found!r}; this version reads format {FORMAT}",
        "install a newer indexmem"
        if newer
        else f"indexmem memories rm {memory_id} --yes, then ask or ingest again",
    )


def _check_parts(manifest: Manifest) -> None:
    """See that the manifest agrees with itself."""
    named = {name for state in manifest.states for name in state.files}
    if manifest.archive is not None:
        named.add(manifest.archive)
    if named != manifest.parts.keys() or not all(map(PART.fullmatch, named)):
        raise ValueError("its parts do not agree")
    if any(part.size_bytes < 0 for part in manifest.parts.values()) or manifest.tokens < 0:
        raise ValueError("a size is negative")
    reach = [(0, 0), *((state.chunks, state.tokens) for state in manifest.states)]
    if not manifest.states or reach != sorted(reach):
        raise ValueError("its states do not agree")
    last = manifest.states[-1]
    if (last.chunks, last.tokens) != (len(manifest.chain), manifest.tokens):
        raise ValueError("its last state is not its end")


def _digest(data: dict[str, Any]) -> str:
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return blake2b(text.encode())


def _build(kind: Any, data: Any) -> Any:
    """Make a value of an annotated type out of JSON, and refuse what does not fit the type.

    Raises:
        ValueError: a value of another type, a field too many or too few.
    """
    if kind is Any:
        return data
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind)
        if not isinstance(data, dict) or data.keys() != {each.name for each in fields(kind)}:
            raise ValueError(f"not the fields of {kind.__name__}")
        return kind(**{name: _build(hints[name], value) for name, value in data.items()})
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _build_union(arguments, data)
    if origin is tuple and isinstance(data, list):
        return tuple(_build(arguments[0], item) for item in data)
    if origin is dict and isinstance(data, dict):
        return {key: _build(arguments[1], value) for key, value in data.items()}
    if kind is float and type(data) is int:
        return float(data)
    if type(data) is not kind:  # a bool is no int
        raise ValueError(f"{data!r:.40} is no {getattr(kind, '__name__', kind)}")
    return data


def _build_union(kinds: tuple[Any, ...], data: Any) -> Any:
    for kind in kinds:
        try:
            return _build(kind, data)
        except ValueError:
            continue
    raise ValueError(f"{data!r:.40} does not fit")
