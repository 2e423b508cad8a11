"""Rows of tokens to train on: language modelling, copying, and questions after a document.

A question row is exactly what the product sends: `<|user|>`, "<document>", the text,
"</document>", a question, `<|end|><|assistant|>`, a space, the answer, `<|end|>`, further turns.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from random import Random

import numpy as np

from indexmem_cli.train.data import Corpus, read_code
from indexmem_cli.train.natural import ask_sentences
from indexmem_cli.train.neighbours import Neighbours
from indexmem_cli.train.reading import (
    QA_WEIGHTS,
    QUESTIONS_FILE,
    Context,
    Function,
    ask_speaker,
    crop,
    load_all_contexts,
    load_functions,
    read_questions,
)
from indexmem_cli.train.renaming import Lexicon, Renaming
from indexmem_cli.train.rewording import reword
from indexmem_cli.train.tasks import (
    Fact,
    Turn,
    make_fact,
    make_rival_fact,
    make_similar_facts,
    refuse,
)

DOCUMENT_OPEN, DOCUMENT_CLOSE = "<document>\n", "\n</document>\n\n"
PROSE_WEIGHTS = {"prose": 0.6, "modern": 0.3, "chat": 0.04, "code": 0.06}
REFUSED_FRACTION = 0.09
"""Share of questions about facts that ask for something the text does not hold."""
READING_REFUSED_FRACTION = 0.04
"""The same for real questions: these are harder to find, and doubt alone must not refuse."""
SHORT_FRACTION = 0.3
"""Share of long rows that hold several short episodes, so that short texts stay familiar."""
SHORT_TOKENS = (128, 192, 256, 384)
LM_WEIGHT = 0.1
"""Weight of a token of plain text, where a token of an answer weighs one."""
LINE_FRACTION = 0.3
"""Share of facts in a line of their own: its first word has no space before it, as answers have."""
RIVAL_FRACTION = 0.3
"""Share of facts beside which another is told of someone with half the name, where one can be."""
NEIGHBOUR_FRACTION = 0.5
"""Share of rows with real questions whose texts are those that share most words with a question."""
NEIGHBOUR_SETS = ("squadshifts", "qamr", "policyqa")
"""Sets of many texts on different things, none of them made up."""
MOST_CONTEXTS = 24
REWORDED_FRACTION = 0.12
"""Share of questions that are asked in a longer way."""
TEXT_WEIGHT = 0.05
"""Weight of a token of a document, where those are trained too."""
FIRST_WEIGHT = 3.0
"""Weight of an answer's first token: it must be found, the others follow by copying."""


@dataclass
class Row:
    """Token ids and, for each, the weight of its loss; 0 means that it is not trained."""

    ids: list[int]
    loss: list[float]


Piece = tuple[int, ...]
"""Tokens that must stay together."""


def load_questions(data: Path) -> tuple[dict[str, list[Context]], list[Function]]:
    """Load the questions of a data folder, or of a folder that holds them packed."""
    if (data / QUESTIONS_FILE).exists():
        return read_questions(data / QUESTIONS_FILE)
    return load_all_contexts(data), load_functions(read_code()[0])


class EpisodeMaker:
    """Makes rows of every sort from the corpus and the question sets."""

    def __init__(
        self,
        corpus: Corpus,
        data: Path,
        with_questions: bool = True,
        text_fraction: float = 0.0,
        renamed_fraction: float = 0.0,
    ) -> None:
        """Load the questions of `data`, unless without.

        Args:
            text_fraction: share of a document's tokens that are trained as plain text is.
            renamed_fraction: share of the rows with real questions that get other words.
        """
        self.corpus, self.text_fraction = corpus, text_fraction
        self.renamed_fraction = renamed_fraction
        self.encode = corpus.encoding.encode_ordinary
        special = corpus.encoding.encode_single_token
        self.end, self.user = special("<|end|>"), special("<|user|>")
        self.assistant, self.pad = special("<|assistant|>"), special("<|pad|>")
        self.open, self.close = self.encode(DOCUMENT_OPEN), self.encode(DOCUMENT_CLOSE)
        self.contexts: dict[str, list[Context]] = {}
        self.functions: list[Function] = []
        if with_questions:
            self.contexts, self.functions = load_questions(data)
        self.neighbours = {
            name: Neighbours([context.text for context in self.contexts[name]])
            for name in NEIGHBOUR_SETS
            if name in self.contexts
        }
        if renamed_fraction:
            every = list(chain.from_iterable(self.contexts.values()))
            asked = (turn.question for context in every for turn in context.turns)
            self.lexicon = Lexicon(chain((context.text for context in every), asked))
        self.makers: dict[str, Callable[[Random, int], Row]] = {
            "lm": self.make_lm,
            "copy": self.make_copy,
            "facts": self.make_facts,
            "qa": self.make_qa,
            "natural": self.make_natural,
            "chat": self.make_chat,
            "code": self.make_code,
        }

    def encode_answer(self, answer: str) -> list[int]:
        """Encode with a leading space: so its tokens are those of the text, and can be copied."""
        return self.encode(" " + answer)

    def make_batch(
        self, rng: Random, mix: dict[str, float], rows: int, length: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw `rows` rows of `length` tokens; ids int64 and loss weights fp32 [rows, length]."""
        ids: np.ndarray = np.full((rows, length), self.pad, dtype=np.int64)
        loss: np.ndarray = np.zeros((rows, length), dtype=np.float32)
        sorts = rng.choices(tuple(mix), tuple(mix.values()), k=rows)
        for i, sort in enumerate(sorts):
            row = self.make_row(rng, sort, length)
            ids[i, : len(row.ids)] = row.ids[:length]
            loss[i, : len(row.loss)] = row.loss[:length]
        return ids, loss

    def make_row(self, rng: Random, sort: str, length: int) -> Row:
        """Make one row: an episode as long as the row, or several short ones."""
        short = rng.choice(SHORT_TOKENS)
        if sort == "lm" or length < 2 * short or rng.random() >= SHORT_FRACTION:
            return self.makers[sort](rng, length)
        row = Row([], [])
        while len(row.ids) + short <= length:
            part = self.makers[sort](rng, short)
            row.ids += part.ids
            row.loss += part.loss
        return row

    def make_lm(self, rng: Random, length: int) -> Row:
        """Plain text, every token trained."""
        ids = self.corpus.packed(rng, self.draw_source(rng), length)
        return Row(ids, [LM_WEIGHT] * len(ids))

    def make_copy(self, rng: Random, length: int) -> Row:
        """A passage, then pieces of it in another order, trained from their third token on."""
        passage = self.corpus.window(rng, self.draw_source(rng), length // 2)
        if rng.random() < 0.3:
            rng.shuffle(passage)
        row = Row(list(passage), [0.0] * len(passage))
        pieces, start = [], 0
        while start < len(passage):
            size = rng.randint(6, 20)
            pieces.append(passage[start : start + size])
            start += size
        rng.shuffle(pieces)
        for piece in pieces:
            row.ids += piece
            row.loss += [float(i >= 2) for i in range(len(piece))]
        return row

    def make_facts(self, rng: Random, length: int) -> Row:
        """Synthetic facts hidden in prose."""
        share = rng.choice((0.05, 0.15, 0.3, 0.45, 0.8)) * (length - 60) + 10
        facts: list[Fact] = []
        if length > 200 and rng.random() < 0.5:
            facts = make_similar_facts(rng, rng.randint(2, min(8, length // 80)))
        used = 0
        pieces: list[Piece] = []
        asked: list[tuple[Turn, ...]] = []
        while used < share:
            fact = facts.pop() if facts else make_fact(rng)
            rival = make_rival_fact(rng, fact) if rng.random() < RIVAL_FRACTION else None
            told = [fact, rival] if rival else [fact]
            asked += [each.turns for each in told]
            for sentence in (sentence for each in told for sentence in each.sentences):
                line = rng.random() < LINE_FRACTION
                pieces.append(tuple(self.encode(f"\n{sentence}\n" if line else f" {sentence}")))
                used += len(pieces[-1])
        turns = [turn for of_fact in asked for turn in rng.sample(of_fact, min(len(of_fact), 2))]
        rng.shuffle(turns)
        turns = [self.refuse_some(rng, turn) for turn in turns]
        return self.compose(rng, pieces, turns, length)

    def refuse_some(self, rng: Random, turn: Turn) -> Turn:
        """Now and then ask about something that is not in the text instead."""
        if rng.random() < REFUSED_FRACTION:
            return refuse(rng.choice(make_fact(rng).turns))
        return turn

    def make_qa(self, rng: Random, length: int) -> Row:
        """Real questions on paragraphs among other paragraphs and prose."""
        name = rng.choices(tuple(self.contexts), [QA_WEIGHTS[n] for n in self.contexts])[0]
        room = rng.choice((0.35, 0.6, 0.85)) * (length - 70)
        renamed = rng.random() < self.renamed_fraction
        renaming = Renaming(self.lexicon, rng) if renamed else None
        pieces, turns, used = [], [], 0
        for context in self.draw_contexts(rng, name):
            piece, asked = self.cut_context(rng, context, int(room - used), renaming)
            if asked:
                pieces.append(piece)
                turns += asked
                used += len(piece)
            if used > room * 0.7:
                break
        rng.shuffle(turns)
        for _ in range(sum(rng.random() < READING_REFUSED_FRACTION for _ in turns)):
            other = rng.choice(self.contexts[rng.choice(tuple(self.contexts))])
            turns.insert(rng.randrange(min(4, len(turns)) + 1), refuse(rng.choice(other.turns)))
        return self.compose(rng, pieces, turns, length)

    def draw_contexts(self, rng: Random, name: str) -> list[Context]:
        """Draw texts of a set at random, or one and those that share words with its question."""
        contexts = self.contexts[name]
        if name not in self.neighbours or rng.random() >= NEIGHBOUR_FRACTION:
            return rng.choices(contexts, k=MOST_CONTEXTS)
        first = rng.randrange(len(contexts))
        question = rng.choice(contexts[first].turns).question
        found = self.neighbours[name].find(question, MOST_CONTEXTS)
        return [contexts[i] for i in dict.fromkeys((first, *found))]

    def cut_context(
        self, rng: Random, context: Context, room: int, renaming: Renaming | None
    ) -> tuple[Piece, list[Turn]]:
        """Encode a context, or the part around one answer that fits; empty turns if none fits."""
        whole = len(context.text) < room * 6 and rng.random() < 0.75
        for part in (context if whole else None, crop(rng, context)):
            if part is not None:
                text, turns = part.text, rng.sample(part.turns, min(len(part.turns), 6))
                if renaming:
                    text, turns = renaming.rename(text, turns)
                ids = self.encode("\n" + text + "\n")
                if len(ids) <= room:
                    return tuple(ids), turns
        return (), []

    def make_natural(self, rng: Random, length: int) -> Row:
        """Questions made from the sentences of the prose itself."""
        source = rng.choices(("prose", "modern"), (0.5, 0.5))[0]
        ids = self.corpus.window(rng, source, int((length - 60) * rng.choice((0.5, 0.8, 1.0))))
        starts = self.corpus.sentence_starts(ids)
        pieces = [tuple(ids[a:b]) for a, b in zip([0, *starts], [*starts, len(ids)], strict=True)]
        text = self.corpus.encoding.decode
        sentences = [text(list(piece)).strip() for piece in pieces[1:-1]]
        turns = ask_sentences(rng, sentences, max(2, length // 25))
        return self.compose(rng, [tuple(ids)], turns, length)

    def make_chat(self, rng: Random, length: int) -> Row:
        """Who said what in a chat log."""
        ids = self.corpus.window(rng, "chat", length - 70)
        log = self.corpus.encoding.decode(ids)
        turns = [turn for _ in range(max(1, length // 64)) if (turn := ask_speaker(rng, log))]
        return self.compose(rng, [tuple(ids)], turns, length)

    def make_code(self, rng: Random, length: int) -> Row:
        """What the functions of a listing return, take, and are called."""
        pieces, turns, used = [], [], 0
        while used < (length - 60) * 0.6:
            function = rng.choice(self.functions)
            ids = self.encode(function.source + "\n")
            if used + len(ids) > length - 60:
                if length < 200 and len(ids) > length - 60:
                    continue
                break
            pieces.append(tuple(ids))
            turns.append(rng.choice(function.turns))
            used += len(ids)
        return self.compose(rng, pieces, turns, length)

    def compose(self, rng: Random, pieces: list[Piece], turns: list[Turn], length: int) -> Row:
        """Hide the pieces in prose and ask the turns that fit into `length` tokens."""
        needed = sum(map(len, pieces)) + len(self.open) + len(self.close) + 1
        spare = rng.choice((0, 0, length // 6, length // 3)) if len(turns) > 1 else 0
        spare = max(0, min(spare, (length - needed) // 2))
        asked, used = [], spare
        for turn in dict.fromkeys(turns):
            question = self.encode(roughen(rng, turn.question))
            answer = self.encode_answer(turn.answer)
            size = len(question) + len(answer) + 4
            if needed + used + size <= length:
                asked.append((question, answer))
                used += size
        if not asked:
            return self.make_lm(rng, length)
        text = self.hide(rng, list(pieces), length - used + spare - needed)
        row = Row([self.user, *self.open, *text, *self.close], [])
        row.loss = [0.0] * len(row.ids)
        if self.text_fraction:
            first = 1 + len(self.open)
            for i in range(first, first + len(text)):
                row.loss[i] = TEXT_WEIGHT * (rng.random() < self.text_fraction)
        for i, (question, answer) in enumerate(asked):
            prompt = [self.user] * (i > 0) + question + [self.end, self.assistant]
            row.ids += prompt + answer + [self.end]
            row.loss += [0.0] * len(prompt) + [FIRST_WEIGHT] + [1.0] * len(answer)
        return row

    def hide(self, rng: Random, pieces: list[Piece], room: int) -> list[int]:
        """Spread `pieces` over `room` tokens of prose: running text, or fragments of it."""
        if room < 12:
            rng.shuffle(pieces)
            return [token for piece in pieces for token in piece]
        if rng.random() < 0.45:
            return self.scatter(rng, pieces, room)
        prose = self.corpus.window(rng, self.draw_source(rng), room)
        places = [0, *self.corpus.sentence_starts(prose), len(prose)]
        chosen = sorted(rng.choices(places, k=len(pieces)))
        rng.shuffle(pieces)
        text, last = [], 0
        for place, piece in zip(chosen, pieces, strict=True):
            text += prose[last:place]
            text += piece
            last = place
        return text + prose[last:]

    def scatter(self, rng: Random, pieces: list[Piece], room: int) -> list[int]:
        """Build the text of fragments, as a bounded memory leaves it; pieces between them."""
        fragments, left = [], room
        base = self.corpus.window(rng, self.draw_source(rng), 4096)
        while left > 0:
            size = min(left, rng.randint(10, 60))
            start = rng.randrange(max(1, len(base) - size))
            fragments.append(tuple(base[start : start + size]))
            left -= size
        parts = [*pieces, *fragments]
        rng.shuffle(parts)
        return [token for part in parts for token in part]

    def draw_source(self, rng: Random) -> str:
        """Draw a source of prose by its weight."""
        names = [name for name in PROSE_WEIGHTS if name in self.corpus.arrays]
        return rng.choices(names, [PROSE_WEIGHTS[name] for name in names])[0]


def roughen(rng: Random, question: str) -> str:
    """Now and then ask in a longer way, or type as people do: no mark, or all in small letters."""
    if question.endswith("?") and rng.random() < REWORDED_FRACTION:
        question = reword(rng, question)
    style = rng.random()
    if style < 0.05:
        return question.rstrip("?")
    return question[:1].lower() + question[1:] if style < 0.09 else question
