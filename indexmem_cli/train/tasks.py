"""Synthetic facts: a sentence that states something, and questions whose answer it holds.

Names, values and wordings are drawn apart from each other, so that an answer can only be copied
from the text.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from indexmem_cli.config import NOT_STATED
from indexmem_cli.train.chains import Form, draw_form
from indexmem_cli.train.frames import make_frame, make_habit
from indexmem_cli.train.kinds import TRAINING_KINDS
from indexmem_cli.train.kinds_people import Kind
from indexmem_cli.train.labels import make_label
from indexmem_cli.train.rewording import report
from indexmem_cli.train.templates import (
    ATTRIBUTE_ADJECTIVES,
    ATTRIBUTES,
    AUXILIARIES,
    BLIND_KINDS,
    DEVELOPMENT_KINDS,
    ENTITIES,
    TRAINING_ATTRIBUTE_QUESTIONS,
    TRAINING_ATTRIBUTE_STATEMENTS,
    TRAINING_DEED_QUESTIONS,
    TRAINING_DEED_STATEMENTS,
    TRAINING_TENSE_QUESTIONS,
    TRAINING_TENSE_STATEMENTS,
    VERBS,
)
from indexmem_cli.train.words import BUILDINGS, SLOTS, make_thing

REPORTED_FRACTION = 0.1
"""Share of facts that are told as something said, known or remembered."""
ALIKE_FRACTION = 0.7
"""Share of texts with facts of one sort in which these have one verb, label or attribute too."""
FIELD = re.compile(r"{(\w+?)}")
RIVAL_DRAWS = 8
NAME = re.compile(r"[A-Z][\w.]+ [A-Z]\w+")


@dataclass(frozen=True)
class Turn:
    """One question with its answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Fact:
    """One or several sentences to hide in a text, and what can be asked about them."""

    sentences: tuple[str, ...]
    turns: tuple[Turn, ...]


def capitalise(text: str) -> str:
    """Upper-case the first letter only."""
    return text[:1].upper() + text[1:]


def open_sentence(text: str) -> str:
    """Upper-case a leading article; a value that opens the sentence keeps its form."""
    text = text.replace("..", ".")
    return capitalise(text) if text.startswith("the ") else text


def fill(rng: Random, template: str, values: dict[str, str]) -> str:
    """Put values into the braces of `template`, drawing those that are missing."""

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name not in values:
            values[name] = SLOTS[name.rstrip("23")](rng)
        return values[name]

    return FIELD.sub(value, template)


def make_kind_fact(rng: Random, kinds: tuple[Kind, ...], with_article: bool = True) -> Fact:
    """State one fact of a kind from the table; answers keep the article of the sentence."""
    statements, questions = rng.choice(kinds)
    values: dict[str, str] = {}
    sentence = fill(rng, rng.choice(statements), values)
    turns = []
    for slot, wordings in questions.items():
        if slot not in values:
            continue
        fitting = [w for w in wordings if set(FIELD.findall(w)) <= set(values)]
        if fitting:
            question = fill(rng, rng.choice(fitting), values)
            answer = values[slot]
            if with_article and f"the {answer}".lower() in sentence.lower():
                answer = f"the {answer}"
            turns.append(Turn(capitalise(question), answer))
    return Fact((open_sentence(sentence),), tuple(turns))


def make_attribute_fact(rng: Random, form: Random | None = None) -> Fact:
    """State "the <attribute> of <entity> is <value>" in one of many forms."""
    form = form or rng
    slot = form.choice(tuple(ATTRIBUTES))
    values = {
        "attribute": form.choice(ATTRIBUTES[slot].split("|")),
        "entity": fill(rng, rng.choice(ENTITIES), {}),
        "value": SLOTS[slot](rng),
        "adjective": rng.choice(ATTRIBUTE_ADJECTIVES),
    }
    statement = fill(rng, rng.choice(TRAINING_ATTRIBUTE_STATEMENTS), values)
    question = fill(rng, rng.choice(TRAINING_ATTRIBUTE_QUESTIONS), values)
    return Fact((open_sentence(statement),), (Turn(capitalise(question), values["value"]),))


def make_deed_fact(rng: Random) -> Fact:
    """State who did what, where and when; every part can be asked."""
    forms = dict(zip(("base", "past", "participle", "sort"), draw_verb(rng), strict=True))
    sort = forms.pop("sort")
    article = "" if sort in ("person2", "place", "word") else "the "
    noun = SLOTS[sort.rstrip("2")](rng)
    if sort == "animal":
        noun = f"{rng.choice(('old', 'white', 'lame', 'black', 'young', 'wild'))} {noun}"
    values = {"object": article + noun, **forms}
    values["subject"] = SLOTS["person"](rng)
    values["where"] = SLOTS[rng.choice(("place", "place", "room", "site"))](rng)
    if values["where"].split(" ")[-1] in BUILDINGS or " of " in values["where"]:
        values["where"] = f"the {values['where']}"
    values["preposition"] = SLOTS["preposition"](rng)
    values["Preposition"] = capitalise(values["preposition"])
    statements: tuple[str, ...] = TRAINING_DEED_STATEMENTS
    questions: dict[str, tuple[str, ...]] = TRAINING_DEED_QUESTIONS
    if rng.random() < 0.35:
        statements, questions = TRAINING_TENSE_STATEMENTS, TRAINING_TENSE_QUESTIONS
        values["auxiliary"] = rng.choice(tuple(AUXILIARIES))
        values["verb"] = forms[AUXILIARIES[values["auxiliary"]]]
    sentence = fill(rng, rng.choice(statements), values)
    turns = []
    for slot, wordings in questions.items():
        if slot not in values or values[slot] not in sentence:
            continue
        fitting = [w for w in wordings if set(FIELD.findall(w)) <= set(values)]
        question = fill(rng, rng.choice(fitting), values)
        turns.append(Turn(capitalise(question), values[slot]))
    return Fact((open_sentence(sentence),), tuple(turns))


def make_frame_fact(rng: Random, form: Random | None = None) -> Fact:
    """State a fact of any verb: a deed, or a habit; of a given form always a deed."""
    habit = not form and rng.random() < 0.25
    sentence, pairs = make_habit(rng) if habit else make_frame(rng, form)
    return Fact((sentence,), tuple(Turn(capitalise(asked), answer) for asked, answer in pairs))


def make_label_fact(rng: Random, form: Random | None = None) -> Fact:
    """State the value of a label of any noun."""
    sentence, question, answer = make_label(rng, form)
    return Fact((open_sentence(sentence),), (Turn(question, answer),))


def draw_verb(rng: Random) -> list[str]:
    """Draw a verb: base form, past, participle, and the sort of its object."""
    return rng.choice(VERBS.split("|")).split()


def make_chain_fact(rng: Random, form: Form | None = None) -> Fact:
    """State two facts that must be joined to answer, of a given form or any."""
    *forms, slot = form or draw_form(rng)
    values: dict[str, str] = {}
    first, second, question = (fill(rng, text, values) for text in forms)
    answer = f"the {values[slot]}" if f" the {values[slot]}" in second else values[slot]
    return Fact((open_sentence(first), open_sentence(second)), (Turn(question, answer),))


def make_list_fact(rng: Random) -> Fact:
    """State several values of one key in separate sentences; the answer lists them in order."""
    values = {"person": SLOTS["person"](rng)}
    verb = rng.choice(("ordered", "packed", "lost", "bought", "carried", "repaired"))
    objects = [make_thing(rng) for _ in range(rng.randint(2, 3))]
    sentences = tuple(f"{values['person']} {verb} a {thing}." for thing in objects)
    question = rng.choice(
        ("List everything that {0} {1}.", "Which things are said to be {1} by {0}?")
    )
    asked = question.format(values["person"], verb)
    return Fact(sentences, (Turn(asked, ", ".join(f"a {thing}" for thing in objects)),))


def make_fact(rng: Random) -> Fact:
    """State one training fact of any sort, now and then in a longer way."""
    fact = make_plain_fact(rng)
    if rng.random() >= REPORTED_FRACTION:
        return fact
    return Fact(tuple(report(rng, sentence) for sentence in fact.sentences), fact.turns)


def make_plain_fact(rng: Random) -> Fact:
    """State one training fact of any sort."""
    style = rng.random()
    if style < 0.2:
        return make_kind_fact(rng, TRAINING_KINDS)
    if style < 0.32:
        return make_attribute_fact(rng)
    if style < 0.47:
        return make_label_fact(rng)
    if style < 0.78:
        return make_frame_fact(rng)
    if style < 0.89:
        return make_deed_fact(rng)
    return make_chain_fact(rng) if style < 0.98 else make_list_fact(rng)


def make_development_fact(rng: Random) -> Fact:
    """State one fact in the wordings kept for measuring."""
    return make_kind_fact(rng, DEVELOPMENT_KINDS, with_article=False)


def make_blind_fact(rng: Random) -> Fact:
    """State one fact in the wordings whose failures nobody looks at."""
    return make_kind_fact(rng, BLIND_KINDS, with_article=False)


def refuse(turn: Turn) -> Turn:
    """Keep the question for a text that does not answer it."""
    return Turn(turn.question, NOT_STATED)


def name_in(fact: Fact) -> str:
    """Return the first answer that is a name of two words, or nothing."""
    return next((turn.answer for turn in fact.turns if NAME.fullmatch(turn.answer)), "")


def make_rival_fact(rng: Random, fact: Fact) -> Fact | None:
    """State another fact, of someone who shares half a name with an answer of `fact`.

    Returns:
        None where no name of two words answers `fact`, or any of some facts drawn for it.
    """
    ours = name_in(fact)
    drawn = (make_fact(rng) for _ in range(RIVAL_DRAWS if ours else 0))
    rival, theirs = next(((other, name) for other in drawn if (name := name_in(other))), (fact, ""))
    if not theirs or ours == theirs:
        return None
    (first, last), (other_first, other_last) = ours.split(), theirs.split()
    halves = (f"{first} {other_last}", f"{other_first} {last}")
    name = rng.choice([name for name in halves if name != ours])

    def rename(text: str) -> str:
        return text.replace(theirs, name)

    turns = tuple(Turn(rename(turn.question), rename(turn.answer)) for turn in rival.turns)
    return Fact(tuple(map(rename, rival.sentences)), turns)


def make_similar_facts(rng: Random, count: int) -> list[Fact]:
    """State `count` facts of one sort about different entities, mostly of one form too."""
    seed, chain, alike = rng.getrandbits(32), draw_form(rng), rng.random() < ALIKE_FRACTION

    def form() -> Random | None:
        return Random(seed) if alike else None

    makers: tuple[Callable[[Random], Fact], ...] = (
        lambda r: make_kind_fact(r, (TRAINING_KINDS[seed % len(TRAINING_KINDS)],)),
        lambda r: make_attribute_fact(r, form()),
        lambda r: make_label_fact(r, form()),
        lambda r: make_frame_fact(r, form()),
        lambda r: make_chain_fact(r, chain),
    )
    make = rng.choice(makers)
    facts: list[Fact] = []
    asked: set[str] = set()
    while len(facts) < count:
        fact = make(rng)
        questions = {turn.question for turn in fact.turns}
        if not questions & asked:
            facts.append(fact)
            asked |= questions
    return facts
