"""Synthetic questions of two steps: one fact names what another tells of.

"The red lamp was left with Ada Hale." "Ada Hale now lives in Oslo." Asked is "In which place does
the person with the red lamp live?" A form is drawn of a way to describe, a way to tell, and verbs;
its slots are filled later, so that a text can hold several chains of one form. No content word of
the forms kept for measuring (train/gate.py, the last two of CHAINS) joins anything here.
"""

from random import Random

from indexmem_cli.train.frames import ALL_NOUNS, ALL_VERBS, inflect
from indexmem_cli.train.rewording import draw_synonym
from indexmem_cli.train.templates import ATTRIBUTES
from indexmem_cli.train.words import words

Form = tuple[str, str, str, str]
"""Two statements, the question, and the slot that answers it."""

# How something is named: a statement, and the description that stands for the name.
DESCRIPTIONS: dict[str, tuple[tuple[str, str], ...]] = {
    "person": (
        ("The {thing} was left with {person}.", "the person with the {thing}"),
        ("{person} takes care of the {site}.", "[who] takes care of the {site}"),
        ("{person} [past] the {thing}.", "[who] [asked] the {thing}"),
        ("{person} [past] the {site}.", "[who] [asked] the {site}"),
        ("{person} [past] the {site} in {place}.", "[who] [asked] the {site}"),
        ("In {year} {person} [past] the {thing}.", "[who] [asked] the {thing}"),
        ("In {year} {person} [past] the {thing}.", "[who] in {year} [asked] the {thing}"),
        ("{person} [past] the {animal} of {person2}.", "[who] [asked] the {animal} of {person2}"),
        ("{person} [past] {number} [noun].", "[who] [asked] {number} [noun]"),
        ("The {thing} was [participle] by {person}.", "[who] [asked] the {thing}"),
        ("The {site} was [participle] by {person}.", "[who] [asked] the {site}"),
        ("It was {person} who [past] the {site}.", "[who] [asked] the {site}"),
        ("The [role] of the {site} is {person}.", "the [role] of the {site}"),
        ("{person} is the [role] of the {site}.", "the [role] of the {site}"),
        ("The [role] of the {thing} was {person}.", "the [role] of the {thing}"),
        ("{person} is [role] of the {word} society.", "the [role] of the {word} society"),
        ("They chose {person} as [role] of {place}.", "the [role] of {place}"),
        ("{person} is the {relation} of {person2}.", "the {relation} of {person2}"),
        ("{person2} has one {relation}, {person}.", "the {relation} of {person2}"),
        ("The {site} belongs to {person}.", "[who] owns the {site}"),
        ("{person} owns the {thing}.", "the owner of the {thing}"),
        ("{person} won the {event} of {place}.", "the winner of the {event} of {place}"),
        ("The page on the {thing} was written by {person}.", "[who] wrote the page on the {thing}"),
        ("In the {site} lives {person}.", "[who] lives in the {site}"),
        ("{person} wears a {colour} coat.", "[who] wears a {colour} coat"),
        ("{person} came on {day} with the {animal}.", "[who] came with the {animal}"),
        ("{person} knows the way to {room}.", "[who] knows the way to {room}"),
        ("{person} is afraid of the {thing}.", "[who] is afraid of the {thing}"),
        ("The {animal} of {place} bit {person}.", "the person whom the {animal} of {place} bit"),
    ),
    "place": (
        ("{person} lives in {place}.", "the place where {person} lives"),
        ("The {site} stands in {place}.", "the place where the {site} stands"),
        ("{person} rules over {place}.", "the country that {person} rules"),
        ("{person} sailed to {place}.", "the place to which {person} sailed"),
        ("The {thing} comes from {place}.", "the place that the {thing} comes from"),
        ("{person} [past] the {thing} in {place}.", "the town where {person} [asked] the {thing}"),
        ("{person} died in {place}.", "the town where {person} died"),
        ("In {place} {person} [past] {number} [noun].", "the place where {person} [asked] [noun]"),
    ),
    "thing": (
        ("{person} [past] the {thing}.", "the thing that {person} [asked]"),
        ("In {year} {person} [past] the {thing}.", "what {person} [asked] in {year}"),
        ("In {room} lies the {thing}.", "the thing in {room}"),
        ("{person} took the {thing} to {place}.", "the thing that {person} took to {place}"),
        ("The prize of the {event} was the {thing}.", "the prize of the {event}"),
        ("The {thing} was [participle] by {person}.", "the thing that {person} [asked]"),
    ),
}
# What is told of it: a statement, a question whose [it] is described, and what answers it.
TELLINGS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "person": (
        ("{person} now lives in {place3}.", "In which place does [it] live?", "place3"),
        ("{person} lives in {place3}.", "Where does [it] live?", "place3"),
        ("{person} moved to {place3}.", "To what place did [it] move?", "place3"),
        ("{person} sailed to {place3} in {year3}.", "Where did [it] sail?", "place3"),
        ("{person} sailed to {place3} in {year3}.", "When did [it] sail to {place3}?", "year3"),
        ("{person} died on {date3}.", "When did [it] die?", "date3"),
        ("On {date3} {person} married {person3}.", "Whom did [it] marry?", "person3"),
        ("{person} met {person3} in {place3}.", "Where did [it] meet {person3}?", "place3"),
        ("In {place3} {person} met {person3}.", "Whom did [it] meet?", "person3"),
        ("{person} keeps the {thing3} in {room3}.", "Where does [it] keep the {thing3}?", "room3"),
        ("{person} keeps the {thing3} in {room3}.", "What does [it] keep in {room3}?", "thing3"),
        ("With {person} one sees the {thing3}.", "What does one see with [it]?", "thing3"),
        ("{person} paid {amount3} for wine.", "How much did [it] pay for wine?", "amount3"),
        ("The {animal3} of {person} is {word3}.", "What is the {animal3} of [it] named?", "word3"),
        ("{person} left at {time3}.", "At what time did [it] leave?", "time3"),
        ("{person} likes {food3} most.", "What does [it] like most?", "food3"),
        ("{person} returns on {day3}.", "On which day does [it] return?", "day3"),
        ("{person} [past] the {site3}.", "What did [it] [base]?", "site3"),
        ("{person} [past] the {thing3}.", "What did [it] [base]?", "thing3"),
        ("In {place3} {person} [past] a horse.", "Where did [it] [base] a horse?", "place3"),
        ("In {year3} {person} [past] the {thing3}.", "When did [it] [base] the {thing3}?", "year3"),
        ("In {year3} {person} [past] the {thing3}.", "What did [it] [base] in {year3}?", "thing3"),
        ("{person} [past] {person3}.", "Whom did [it] [base]?", "person3"),
        ("{person} [past] {number3} [noun].", "How many [noun] did [it] [base]?", "number3"),
        ("{person} will [verb] the {thing3}.", "What will [it] [base]?", "thing3"),
        ("{person} has [participle] the {site3}.", "What has [it] [done]?", "site3"),
        ("{person} works at the {site3}.", "At which building does [it] work?", "site3"),
        ("{person} speaks for {place3}.", "For which place does [it] speak?", "place3"),
        ("The [label] of {person} is [value].", "What is the [label] of [it]?", "[value]"),
        ("The [label] of {person} was [value].", "Tell me the [label] of [it].", "[value]"),
        ("[value] is the [label] of {person}.", "What is the [label] of [it]?", "[value]"),
        ("{person} has [value] as [label].", "Which [label] does [it] have?", "[value]"),
    ),
    "place": (
        ("The {event3} of {place} was on {date3}.", "When was the {event3} of [it]?", "date3"),
        ("The mayor of {place} is {person3}.", "Who is the mayor of [it]?", "person3"),
        ("{place} has {number3} [noun].", "How many [noun] does [it] have?", "number3"),
        ("In {year3} {person3} [past] {place}.", "Who [asked] [it]?", "person3"),
        ("In {year3} {person3} [past] {place}.", "When did {person3} [base] [it]?", "year3"),
        ("From {place} to {place3} it is {amount3}.", "How far is {place3} from [it]?", "amount3"),
        ("{place} is known for its {food3}.", "What is [it] known for?", "food3"),
        ("The [label] of {place} is [value].", "What is the [label] of [it]?", "[value]"),
        ("[value] is the [label] of {place}.", "Which [label] does [it] have?", "[value]"),
    ),
    "thing": (
        ("The {thing} is made of {material3}.", "What is [it] made of?", "material3"),
        ("The {thing} cost {amount3}.", "How much did [it] cost?", "amount3"),
        ("{person3} [past] the {thing} in {year3}.", "When did {person3} [base] [it]?", "year3"),
        ("{person3} now has the {thing}.", "Who has [it] now?", "person3"),
        ("The {thing} is kept in {room3}.", "Where is [it] kept?", "room3"),
        ("The {thing} was taken to {place3}.", "Where was [it] taken?", "place3"),
        ("The [label] of the {thing} is [value].", "What is the [label] of [it]?", "[value]"),
    ),
}
WHO = words("the one who|the person who|the person that|whoever|the one that", "|")
KEPT_APART = {"born", "job", "key", "gave", "give", "given", "present", "keeper"}
"""Words that join the steps of the forms kept for measuring."""
LABELS = tuple(
    (slot, label)
    for slot, labels in ATTRIBUTES.items()
    for label in labels.split("|")
    if not KEPT_APART & set(label.split())
)
ROLES = tuple(label for slot, label in LABELS if slot == "person")
VERBS = tuple(verb for verb in ALL_VERBS if verb not in KEPT_APART)


def draw_form(rng: Random) -> Form:
    """Draw how something is named, what is told of it, and the words of both."""
    sort = rng.choices(tuple(DESCRIPTIONS), (0.7, 0.15, 0.15))[0]
    drawn = draw_words(rng)
    first, description = (put_words(text, drawn) for text in rng.choice(DESCRIPTIONS[sort]))
    drawn = {**draw_words(rng), "it": description}
    second, question, answer = (put_words(text, drawn) for text in rng.choice(TELLINGS[sort]))
    return first, second, question, answer.strip("{}")


def draw_words(rng: Random) -> dict[str, str]:
    """Draw what stands in brackets: the forms of a verb and of one that asks, nouns, a role."""
    verb = rng.choice(VERBS)
    base = draw_synonym(rng, verb)
    base = verb if base in KEPT_APART else base
    past, participle, _ = inflect(verb)
    asked, done, _ = inflect(base)
    slot, label = rng.choice(LABELS)
    return {
        "verb": verb,
        "past": past,
        "participle": participle,
        "base": base,
        "asked": asked,
        "done": done,
        "noun": rng.choice(ALL_NOUNS),
        "who": rng.choice(WHO),
        "role": rng.choice(ROLES),
        "label": label,
        "value": f"{{{slot}3}}",
    }


def put_words(text: str, drawn: dict[str, str]) -> str:
    """Put drawn words into the brackets of `text`."""
    for name, word in drawn.items():
        text = text.replace(f"[{name}]", word)
    return text
