"""A conversation of many turns of real chat text, a fact in each; all facts are asked at its end.

python benchmarks/conversation.py chat.jsonl.xz --turns 300 --tokens 200k --budget 1k

Half of the turns are said in one process and half in another, which opens the session again.
"""

import os
import tempfile
import time
from argparse import Namespace
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from random import Random

from needles import WORDINGS, Needle, make_needles
from recall import lines_of

from indexmem_cli.bench import rows
from indexmem_cli.bench.rows import Row
from indexmem_cli.checkpoint import find_checkpoint
from indexmem_cli.config import UNFOCUSED, AnswerConfig, MemoryConfig, ModelConfig, parse_size
from indexmem_cli.conversation import Conversation, open_conversation
from indexmem_cli.events import Answer
from indexmem_cli.tokens import Tokenizer, load_tokenizer

MODES = {"recall": True, "no-recall": False}
COLUMNS = ["mode", "tokens", "n", "right", "accuracy", "interval_95", "found", "by_age"]
COLUMNS += ["ask_s", "kv_bytes", "reopen_s", "peaks"]
AGES = 6
PEAKS = 6
"""Points of each half at which the peak of the process is noted."""


def write_messages(
    paths: Sequence[str], needles: Sequence[Needle], tokens: int, tokenizer: Tokenizer, seed: int
) -> list[str]:
    """Cut a chat into messages, `tokens` in all, with a fact in a line of its own in each."""
    lines, chance, messages = lines_of(paths), Random(seed), []
    for needle in needles:
        taken, room = [], tokens // len(needles)
        while room > 0:
            if (line := next(lines, None)) is None:
                raise SystemExit(f"the texts are too short for {tokens:,} tokens")
            room -= len(tokenizer.encode(line))
            taken.append(line)
        taken.insert(chance.randrange(len(taken)), needle.sentence + "\n")
        messages.append("".join(taken))
    return messages


def say(job: tuple[str, str | None, list[str], Namespace]) -> Row:
    """Say messages in a process of its own; the session's id, and the peaks on the way."""
    mode, session, messages, options = job
    talk, started = _open(mode, session, options), time.perf_counter()
    for _ in talk.start():
        pass
    reopen_s, peaks, read_s = time.perf_counter() - started, {}, 0.0
    every = max(1, len(messages) // PEAKS)
    for number, message in enumerate(messages, 1):
        started = time.perf_counter()
        answer = _ask(talk, message, options.max_tokens)
        read_s += time.perf_counter() - started
        if number % every == 0:
            peaks[talk.num_turns] = answer.memory.process_peak_bytes
    notices = talk.close()
    assert not notices, notices
    return {"session": talk.session.id, "peaks": peaks, "say_s": read_s, "reopen_s": reopen_s}


def ask_all(job: tuple[str, str, list[Needle], Namespace]) -> Row:
    """Open the conversation again and ask of every fact, each question a turn of its own."""
    mode, session, needles, options = job
    talk, results = _open(mode, session, options), []
    for _ in talk.start():
        pass
    for number, needle in enumerate(needles, 1):
        started = time.perf_counter()
        answer = _ask(talk, needle.question, options.max_tokens)
        seconds = time.perf_counter() - started
        archive = talk._growing.archive
        blocks = [block.number for each in answer.recall or () for block in each.blocks]
        recalled = " ".join(archive.text(archive.block(n)) for n in blocks)
        results.append(
            {
                "turn": number,
                "question": needle.question,
                "expected": needle.answer,
                "text": answer.text,
                "right": needle.answer.lower() in answer.text.lower(),
                "found": needle.sentence in " ".join(recalled.split()),
                "cited": any(f"turn {number}" == source.member for source in answer.sources),
                "seconds": round(seconds, 4),
            }
        )
    talk.close()
    return {
        "results": results,
        "tokens_at_end": answer.memory.full_kv_tokens,
        "kv_bytes": answer.memory.kv_bytes,
        "dtype": answer.model.dtype,
        "process_peak_bytes": answer.memory.process_peak_bytes,
    }


def _open(mode: str, session: str | None, options: Namespace) -> Conversation:
    import torch

    torch.set_num_threads(options.threads)
    memory = MemoryConfig(
        budget_tokens=options.budget,
        chunk_tokens=options.chunk,
        recall=MODES[mode],
        policy=UNFOCUSED,
    )
    model = ModelConfig(options.model, dtype=options.dtype, device=options.device, offline=True)
    return open_conversation([], memory=memory, model=model, resumed=session)


def _ask(talk: Conversation, message: str, max_tokens: int) -> Answer:
    *_, answer = (e for e in talk.ask(message, AnswerConfig(max_tokens)) if isinstance(e, Answer))
    return answer


def measure(mode: str, needles: list[Needle], messages: list[str], options: Namespace) -> Row:
    """Hold one conversation; its row."""
    half, halves, session = len(messages) // 2, [], None
    for part in (messages[:half], messages[half:]):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            halves.append(pool.submit(say, (mode, session, part, options)).result())
        session = halves[-1]["session"]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        asked = pool.submit(ask_all, (mode, session, needles, options)).result()
    results = asked["results"]
    bounds = [round(i * len(results) / AGES) for i in range(AGES + 1)]
    ages = [results[a:b] for a, b in zip(bounds, bounds[1:], strict=False) if b > a]
    return {
        "tokens_at_end": asked["tokens_at_end"],
        **rows.count_right(results),
        "found": sum(result["found"] for result in results) / len(results),
        "cited": sum(result["cited"] for result in results) / len(results),
        "by_age": [round(sum(r["right"] for r in age) / len(age), 3) for age in ages],
        "ask_s": rows.spread(result["seconds"] for result in results),
        "say_s": round(sum(part["say_s"] for part in halves), 1),
        "reopen_s": round(halves[1]["reopen_s"], 2),
        "peaks": [peak for part in halves for peak in part["peaks"].items()],
        "kv_bytes": asked["kv_bytes"],
        "dtype": asked["dtype"],
        "process_peak_bytes": asked["process_peak_bytes"],
        "results": results,
    }


def main(arguments: list[str] | None = None) -> None:
    """Hold a conversation for each mode, append rows, print a table."""
    parser = rows.option_parser(__doc__.partition("\n")[0], "conversation")
    parser.set_defaults(threads=1)
    add = parser.add_argument
    add("texts", nargs="+", help="chat logs: texts or .jsonl.xz files of records")
    add("--turns", type=int, default=300)
    add("--tokens", type=parse_size, default="200k", help="of all turns together")
    add("--wordings", choices=WORDINGS, default="development")
    add("--modes", default="recall", help=f"of {', '.join(MODES)}")
    add("--max-tokens", type=int, default=32, help="longest answer")
    add("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    checkpoint = find_checkpoint(options.model, offline=True)
    tokenizer = load_tokenizer(checkpoint.path)
    needles = make_needles(options.turns, options.seed, options.wordings)
    messages = write_messages(options.texts, needles, options.tokens, tokenizer, options.seed)
    tokens = sum(len(tokenizer.encode(message)) for message in messages)
    settings: Row = {"benchmark": "conversation", "seed": options.seed, "turns": options.turns}
    settings |= {"wordings": options.wordings, "threads": options.threads, "tokens": tokens}
    settings |= {"texts": [Path(path).name for path in options.texts], "device": options.device}
    settings |= {"budget": options.budget, "chunk_tokens": options.chunk}
    measured = []
    for mode in options.modes.split(","):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["INDEXMEM_HOME"] = folder
            row = measure(mode, needles, messages, options)
        row["tokens_per_s"] = round(tokens / row["say_s"])
        row = rows.common_fields(checkpoint, options.device) | settings | {"mode": mode} | row
        rows.append_row(options.out, row)
        measured.append(row)
        rows.print_table(measured, COLUMNS)


if __name__ == "__main__":
    main()
