"""Questions about chat and code, and the question sets of `qa/train`."""

import ast
import gzip
import json
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from random import Random

from indexmem_cli.config import NOT_STATED
from indexmem_cli.train.data import read_records
from indexmem_cli.train.tasks import Turn, capitalise
from indexmem_cli.train.templates import TRAINING_SPEAKER_QUESTIONS

QA_WEIGHTS = {
    "squadshifts": 0.42,
    "qamr": 0.33,
    "fairytaleqa": 0.1,
    "policyqa": 0.04,
    "covidqa": 0.03,
    "molweni": 0.04,
    "babi": 0.04,
}
"""The sets of questions, and how often a row is of each."""
QUESTIONS_FILE = "questions.json.gz"
MAX_ANSWER_CHARS = 120
SPEAKER = re.compile(r"^(?:\[[0-9:]+\] )?<([^>\n]+)> (.{12,120})$", re.MULTILINE)


@dataclass(frozen=True)
class Context:
    """A text with questions; `spans` are the character ranges of the answers, or None."""

    text: str
    turns: tuple[Turn, ...]
    spans: tuple[tuple[int, int] | None, ...]


def load_contexts(data: Path, name: str, split: str = "train") -> list[Context]:
    """Group one question set by its text; only short answers that stand in it, and refusals."""
    folder = data / "qa" / split
    documents = {}
    if name in ("fairytaleqa", "covidqa"):
        documents = {r["doc_id"]: r["text"] for r in read_records(folder / "docs.jsonl.xz")}
    grouped: defaultdict[str, list[tuple[Turn, tuple[int, int] | None]]] = defaultdict(list)
    for record in read_records(folder / f"{name}.jsonl.xz"):
        text = record.get("context") or documents[record["doc_id"]]
        start = record["answer_start"]
        if not record["answerable"]:
            grouped[text].append((Turn(record["question"], NOT_STATED), None))
        elif start is not None and len(record["answers"][0]) <= MAX_ANSWER_CHARS:
            answer, start = choose_answer(text, record["answers"], start)
            turn = Turn(record["question"], answer.strip())
            grouped[text].append((turn, (start, start + len(answer))))
    return [
        Context(text, tuple(turn for turn, _ in pairs), tuple(span for _, span in pairs))
        for text, pairs in grouped.items()
    ]


def choose_answer(text: str, answers: list[str], start: int) -> tuple[str, int]:
    """Prefer the answer that most readers gave, then the shortest; with its place in `text`."""
    standing = [answer for answer in answers if answer and answer in text]
    best = min(standing, key=lambda answer: (-standing.count(answer), len(answer)))
    near = text.find(best, max(0, start - len(best)))
    return best, near if near >= 0 else text.find(best)


def crop(rng: Random, context: Context) -> Context | None:
    """Cut out the part around one answer, with its question; None of a question without one."""
    turn, span = rng.choice(list(zip(context.turns, context.spans, strict=True)))
    if span is None:
        return None
    start = max(0, span[0] - rng.randint(60, 400))
    end = min(len(context.text), span[1] + rng.randint(20, 300))
    start = 0 if start == 0 else context.text.find(" ", start, span[0]) + 1 or start
    return Context(context.text[start:end], (turn,), ((span[0] - start, span[1] - start),))


def ask_speaker(rng: Random, log: str) -> Turn | None:
    """Ask who wrote a line of a chat log."""
    lines = [(m[1], m[2]) for m in SPEAKER.finditer(log)]
    if not lines:
        return None
    nick, line = rng.choice(lines)
    if sum(other == line for _, other in lines) > 1:
        return None
    return Turn(rng.choice(TRAINING_SPEAKER_QUESTIONS).format(line=line), nick)


@dataclass(frozen=True)
class Function:
    """A function of a listing: its source, and questions about it."""

    source: str
    turns: tuple[Turn, ...]


def load_functions(texts: list[str], max_chars: int = 1200) -> list[Function]:
    """Find short functions with one plain return in Python sources."""
    functions = []
    for text in texts:
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError):
            continue
        lines = text.splitlines(keepends=True)
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("__"):
                continue
            source = "".join(lines[node.lineno - 1 : node.end_lineno])
            if len(source) <= max_chars:
                functions.append(Function(source, ask_function(node)))
    return [function for function in functions if function.turns]


def ask_function(node: ast.FunctionDef) -> tuple[Turn, ...]:
    """Ask what a function returns, is called, and takes."""
    turns = []
    returns = [n.value for n in ast.walk(node) if isinstance(n, ast.Return) and n.value]
    if len(returns) == 1:
        value = ast.unparse(returns[0])
        if len(value) < 60:
            turns.append(Turn(f"What does the function {node.name} return?", value))
            if len(value) > 8:
                turns.append(Turn(f"Which function returns {value}?", node.name))
    names = [arg.arg for arg in node.args.args]
    if names:
        turns.append(Turn(f"Which arguments does {node.name} take?", ", ".join(names)))
    return tuple(Turn(capitalise(turn.question), turn.answer) for turn in turns)


def load_all_contexts(data: Path) -> dict[str, list[Context]]:
    """Load every question set that is there."""
    folder = data / "qa" / "train"
    present = [name for name in QA_WEIGHTS if (folder / f"{name}.jsonl.xz").exists()]
    return {name: load_contexts(data, name) for name in present}


def write_questions(
    path: Path, contexts: dict[str, list[Context]], functions: list[Function]
) -> None:
    """Write contexts and functions into one compressed JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sets = {
        name: [[c.text, [[t.question, t.answer] for t in c.turns], c.spans] for c in group]
        for name, group in contexts.items()
    }
    asked = [[f.source, [[t.question, t.answer] for t in f.turns]] for f in functions]
    content = json.dumps({"contexts": sets, "functions": asked}).encode()
    path.write_bytes(gzip.compress(content, mtime=0))


def read_questions(path: Path) -> tuple[dict[str, list[Context]], list[Function]]:
    """Read what `write_questions` wrote."""
    content = json.loads(gzip.decompress(path.read_bytes()))

    def turns(pairs: list[tuple[str, str]]) -> tuple[Turn, ...]:
        return tuple(Turn(*pair) for pair in pairs)

    def context(
        text: str, pairs: list[tuple[str, str]], spans: list[tuple[int, int] | None]
    ) -> Context:
        return Context(text, turns(pairs), tuple(span and (span[0], span[1]) for span in spans))

    sets = {name: [context(*one) for one in group] for name, group in content["contexts"].items()}
    return sets, [Function(source, turns(pairs)) for source, pairs in content["functions"]]
