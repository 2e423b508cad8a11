"""Texts with questions that nothing was trained on: facts in prose, passages among others."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from indexmem_cli.bench.tasks import passage_of
from indexmem_cli.train.data import Corpus, read_records
from indexmem_cli.train.tasks import capitalise, fill, make_development_fact, make_kind_fact
from indexmem_cli.train.templates import DEVELOPMENT_KINDS

TASKS = ("single", "keys", "values", "chain", "squadshifts", "fairytaleqa", "prose")


@dataclass(frozen=True)
class Ask:
    """One question of a text."""

    question: str
    answers: tuple[str, ...]
    evidence: tuple[tuple[int, int], ...]
    """Tokens of the text [first, end) that hold the answer."""


@dataclass
class Text:
    """A text with what is asked of it afterwards; without questions its tokens are predicted."""

    task: str
    ids: list[int]
    asks: list[Ask] = field(default_factory=list)


class Texts:
    """Makes texts in wordings, of books and of question sets that nothing was trained on."""

    def __init__(self, corpus: Corpus, data: Path, tokens: int) -> None:
        self.corpus, self.data, self.tokens = corpus, data, tokens
        self.encode = corpus.encoding.encode_ordinary
        self._passages: dict[str, list] = {}

    def make(self, task: str, number: int) -> Text:
        """Make text `number` of a task: the same whenever it is asked for."""
        rng = Random(f"{task} {number}")
        if task == "prose":
            return Text(task, self.corpus.packed(rng, "prose", self.tokens))
        if task in ("squadshifts", "fairytaleqa"):
            return self._reading(task, rng)
        return self._needles(task, *getattr(self, f"_{task}")(rng))

    def _single(self, rng: Random):
        """Three facts that have nothing to do with each other."""
        facts, known = [], set()
        while len(facts) < 3:
            fact = make_development_fact(rng)
            turn, opening = rng.choice(fact.turns), fact.turns[0].question[:16]
            if opening not in known:
                known.add(opening)
                facts.append((fact.sentences[0], turn))
        asked = [(t.question, (t.answer,), (i,)) for i, (_, t) in enumerate(facts)]
        return rng, [sentence for sentence, _ in facts], asked

    def _keys(self, rng: Random):
        kinds, facts, known = (rng.choice(DEVELOPMENT_KINDS),), [], set()
        while len(facts) < 4:
            fact = make_kind_fact(rng, kinds, with_article=False)
            turn = rng.choice(fact.turns)
            if turn.question not in known:
                known.add(turn.question)
                facts.append((fact.sentences[0], turn))
        asked = [(t.question, (t.answer,), (i,)) for i, (_, t) in enumerate(facts)]
        return rng, [sentence for sentence, _ in facts], asked

    def _values(self, rng: Random):
        person: dict[str, str] = {}
        things = []
        while len(things) < 3:
            values = dict(person)
            sentence = fill(rng, "Among the goods of {person} is the {thing}.", values)
            person = {"person": values["person"]}
            things.append((sentence, values["thing"]))
        question = fill(rng, "Name the goods of {person}.", person)
        answers = tuple(thing for _, thing in things)
        return rng, [sentence for sentence, _ in things], [(question, answers, (0, 1, 2))]

    def _chain(self, rng: Random):
        """Two pairs of facts; a question needs both facts of a pair."""
        sentences, asked = [], []
        for first in (0, 2):
            values: dict[str, str] = {}
            sentences.append(fill(rng, "The keeper of the {thing} is {person}.", values))
            sentences.append(fill(rng, "{person} may be found in {place}.", values))
            question = fill(rng, "In what place may the keeper of the {thing} be found?", values)
            asked.append((question, (values["place"],), (first, first + 1)))
        return rng, sentences, asked

    def _needles(self, task: str, rng: Random, sentences: list[str], asked) -> Text:
        pieces = [self.encode(" " + capitalise(sentence)) for sentence in sentences]
        room = self.tokens - sum(map(len, pieces))
        prose = self.corpus.packed(rng, "prose", room)
        places = [0, *self.corpus.sentence_starts(prose)]
        if len(places) < len(pieces):  # a text without sentences
            places = range(len(prose))
        chosen = sorted(rng.sample(places, len(pieces)))
        order = list(range(len(pieces)))
        rng.shuffle(order)
        ids, spans, last = [], {}, 0
        for place, i in zip(chosen, order, strict=True):
            ids += prose[last:place]
            spans[i] = (len(ids), len(ids) + len(pieces[i]))
            ids += pieces[i]
            last = place
        ids += prose[last:]
        asks = [Ask(q, answers, tuple(spans[i] for i in of)) for q, answers, of in asked]
        return Text(task, ids, asks)

    def _reading(self, name: str, rng: Random) -> Text:
        passages = self.passages(name)
        chosen = rng.sample(passages, 40)
        gold, records = next(p for p in chosen if len(self.encode(p[0])) < self.tokens // 2)
        parts = [gold]
        left = self.tokens - len(self.encode("\n" + gold + "\n"))
        for other, _ in chosen:
            size = len(self.encode("\n" + other + "\n"))
            if other != gold and size <= left:
                parts.append(other)
                left -= size
        rng.shuffle(parts)
        ids, span = [], (0, 0)
        for part in parts:
            fresh = self.encode("\n" + part + "\n")
            if part == gold:
                span = (len(ids), len(ids) + len(fresh))
            ids += fresh
        asks = []
        for record in rng.sample(records, min(3, len(records))):
            near = _answer_tokens(self.encode, gold, record["answers"], span)
            asks.append(Ask(record["question"], tuple(record["answers"]), (near,)))
        return Text(name, ids, asks)

    def passages(self, name: str) -> list:
        """Passages of a development set, each with its answerable questions."""
        if name not in self._passages:
            folder = self.data / "qa" / "dev"
            documents = {r["doc_id"]: r["text"] for r in read_records(folder / "docs.jsonl.xz")}
            grouped = defaultdict(list)
            for record in read_records(folder / f"{name}.jsonl.xz"):
                if not record["answerable"]:
                    continue
                grouped[passage_of(record, documents)].append(record)
            self._passages[name] = sorted(grouped.items())
        return self._passages[name]


def _answer_tokens(encode, gold: str, answers: Sequence[str], span: tuple[int, int]):
    """The tokens around an answer's place in its passage; the whole passage if it has none."""
    place = next((gold.find(a) for a in answers if a in gold), -1)
    if place < 0:
        return span
    start = span[0] + len(encode("\n" + gold[:place]))
    return max(span[0], start - 24), min(span[1], start + 24)
