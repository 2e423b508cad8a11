"""A long conversation as a text: a fact is said in it, at ten even depths, and asked at its end.

Conversations that are held turn by turn and opened again are those of benchmarks/conversation.py.
"""

import re
from functools import lru_cache
from itertools import cycle, islice
from pathlib import Path

from indexmem_cli.bench.rows import EXAMPLES
from indexmem_cli.bench.ruler import draw_needle
from indexmem_cli.bench.suites import Draw, Sample, Task, add_task
from indexmem_cli.errors import ConfigError
from indexmem_cli.train.data import read_chat

_MESSAGE = re.compile(r"(?:\[[\d:]+\] <(.+?)>|\S+ \S+ - ([^:]+):) (.+)")


def make_conversation(draw: Draw) -> Sample:
    """Let someone of a real chat say a fact in a wording nothing was trained on."""
    rng, messages = draw.rng, read_messages(draw.data)
    sentence, turn, depth = draw_needle(draw)
    start = rng.randrange(len(messages))
    names = [name for name, _ in islice(cycle(messages), start, start + 20)]
    said = f"{rng.choice(names)}: {sentence}\n"
    lines = (f"{name}: {text}\n" for name, text in islice(cycle(messages), start, None))
    taken = draw.fill(lines, turn.question, said)
    taken.insert(round(depth * len(taken)), said)
    return Sample("".join(taken), turn.question, (turn.answer,), depth)


@lru_cache(maxsize=1)
def read_messages(data: Path | None) -> list[tuple[str, str]]:
    """Return names and messages of held-out logs; without a data folder, of the example chat.

    Raises:
        ConfigError: there is no log.
    """
    log = EXAMPLES / "chat.txt"
    if data is not None and (data / "prose" / "chat.jsonl.xz").exists():
        texts = read_chat(data)[1]
    elif log.exists():
        texts = [log.read_text("utf-8")]
    else:
        raise ConfigError("there is no chat to hide things in", "name a folder: --data DIR")
    found = [match for text in texts for match in map(_MESSAGE.fullmatch, text.splitlines())]
    return [(match[1] or match[2], match[3]) for match in found if match]


add_task("conversation", "chat", Task(make_conversation, max_tokens=32))
