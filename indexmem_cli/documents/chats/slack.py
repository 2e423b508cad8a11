"""A Slack workspace as it is exported: a zip or a folder of channels, with one file a day."""

import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from indexmem_cli.config import ReadConfig
from indexmem_cli.documents.chats.exports import MAX_RECORD_BYTES, read_records
from indexmem_cli.documents.chats.messages import Message
from indexmem_cli.documents.chats.messengers import from_slack
from indexmem_cli.documents.passages import ByteSource, Damaged, Meter, read_whole
from indexmem_cli.documents.unzip import Zip
from indexmem_cli.errors import reason

_LISTS = ("channels.json", "groups.json", "dms.json", "mpims.json")
_DAY = re.compile(r"(.+)/\d{4}-\d\d-\d\d\.json")


class Members(Protocol):
    """Named files: of a zip, or of a folder."""

    @property
    def names(self) -> list[str]:
        """Names of the files, with folders before them."""

    def read(self, name: str, max_bytes: int) -> bytes:
        """Return a whole member that is not larger than `max_bytes`."""


class Folder:
    """The regular files of a folder and of the folders in it; links are not followed."""

    def __init__(self, root: Path) -> None:
        """List the files as they are now.

        Raises:
            OSError: the folder itself cannot be looked into.
        """
        self._root = root
        self.meter: Meter | None = None
        """Told how much is read."""
        self.skipped: Counter[str] = Counter()
        """As in `Sources`: the folders in it that cannot be looked into."""
        sizes = _sizes_of(root)
        for folder in sorted(path for path in root.iterdir() if _is_folder(path)):
            try:
                inner = _sizes_of(folder)
            except OSError:
                self.skipped["unreadable"] += 1
            else:
                sizes.update({f"{folder.name}/{name}": size for name, size in inner.items()})
        self.names = list(sizes)
        self.size_bytes = sum(sizes.values())

    @property
    def paths(self) -> list[Path]:
        """Where the files lie, in the order of their names."""
        return [self._root / name for name in sorted(self.names)]

    def read(self, name: str, max_bytes: int) -> bytes:
        """Return a whole file that is not larger than `max_bytes`."""
        try:
            with (self._root / name).open("rb") as stream:
                data = read_whole(stream, max_bytes, f"{name} in it")
        except OSError as error:
            raise Damaged(f"{name} in it: {reason(error)}", reason="unreadable") from error
        if self.meter is not None:
            self.meter.count(len(data))
        return data


def is_slack(names: Iterable[str]) -> bool:
    """Tell whether these are the files of an export: lists of users and channels, and days."""
    names = list(names)
    base = _base(names)
    return f"{base}users.json" in names and any(map(_DAY.fullmatch, names))


def read_slack_zip(stream: ByteSource, config: ReadConfig) -> Iterator[Message]:
    """Yield the messages of a zipped export."""
    yield from read_slack(Zip(stream))


def read_slack(members: Members) -> Iterator[Message]:
    """Yield channel after channel, day after day; what is said in a thread follows its beginning.

    A day is held in memory as a whole, nothing larger.
    """
    base = _base(members.names)
    listed = [channel for name in _LISTS for channel in _records(members, base + name, "channel")]
    with _as_slack_writes_it("a list of users or channels"):
        users = {
            user["id"]: _user_name(user)
            for user in _records(members, f"{base}users.json", "user")
            if "id" in user
        }
        names = {str(channel.get("name") or channel.get("id")): channel for channel in listed}
    days: dict[str, list[str]] = {}
    for name in sorted(members.names):
        if name.startswith(base) and (match := _DAY.fullmatch(name.removeprefix(base))):
            days.setdefault(match[1], []).append(name)
    order = {name: at for at, name in enumerate(names)}
    for folder in sorted(days, key=lambda name: (order.get(name, len(order)), name)):
        with _as_slack_writes_it("a list of channels"):
            channel = _channel_name(names.get(folder) or {"name": folder}, users)
        for name in days[folder]:
            said = sorted(_records(members, name, "message"), key=_reading_order)
            for record in said:
                with _as_slack_writes_it(name):
                    messages = list(from_slack(record, users, channel))
                yield from messages


@contextmanager
def _as_slack_writes_it(name: str) -> Iterator[None]:
    """Say what is damaged where a record is not what it should be."""
    try:
        yield
    except (AttributeError, TypeError, KeyError) as error:
        raise Damaged(f"{name} in it is not as Slack writes it ({error})") from error


def _records(members: Members, name: str, what: str) -> list[dict[str, Any]]:
    if name not in members.names:
        return []
    data = io.BytesIO(members.read(name, MAX_RECORD_BYTES))
    try:
        return [record for record, _ in read_records(data, "item")]
    except Damaged as error:
        raise Damaged(f"{name} in it, a list of each {what}: {error}") from error


def _base(names: Iterable[str]) -> str:
    """Return the folder of the zip that everything is in, as `export/`; mostly there is none."""
    lists = [name for name in names if name.rsplit("/", 1)[-1] == "users.json"]
    return min(lists, key=len, default="").removesuffix("users.json")


def _reading_order(record: dict[str, Any]) -> tuple[float, float]:
    ts = record.get("ts") or 0
    try:
        return (float(record.get("thread_ts") or ts), float(ts))
    except (TypeError, ValueError):
        return (0.0, 0.0)


def _user_name(user: dict[str, Any]) -> str:
    profile = user.get("profile") or {}
    names = (profile.get("display_name"), profile.get("real_name"), user.get("real_name"))
    return str(next(filter(None, names), None) or user.get("name") or user["id"])


def _channel_name(channel: dict[str, Any], users: dict[str, str]) -> str:
    """Return `#general`; the people of a direct conversation, which has no name."""
    if channel.get("name"):
        return f"#{channel['name']}"
    people = [users.get(user, user) for user in channel.get("members") or []]
    return ", ".join(people) or str(channel.get("id"))


def _sizes_of(folder: Path) -> dict[str, int]:
    """Size of each regular file in a folder by its name."""
    with os.scandir(folder) as scan:
        files = [entry for entry in scan if entry.is_file(follow_symlinks=False)]
    return {entry.name: entry.stat(follow_symlinks=False).st_size for entry in files}


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
