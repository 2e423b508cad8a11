"""Other words for the same: synonyms of verbs, and longer ways to state and to ask.

A question seldom repeats the words of the text that answers it. No content word of the wordings
kept for measuring (templates.DEVELOPMENT_KINDS and BLIND_KINDS) is used here.
"""

from random import Random

from indexmem_cli.train.words import words

GROUPS = words(
    "acquire buy get obtain procure purchase|build construct assemble|find discover detect|"
    "catch capture seize|grab grasp seize snatch|give grant hand|send ship mail|"
    "make manufacture produce|create invent|write compose|mend restore|finish complete conclude|"
    "assist aid help support|keep retain maintain|conceal hide|display exhibit show|"
    "notice see perceive|choose pick|desire want|demand claim|tell inform|"
    "announce declare proclaim|carry transport convey|lift raise|throw hurl|break crack|"
    "destroy ruin|clean wash wipe|cook boil bake|eat devour|drink swallow|"
    "defend guard protect|praise salute|admire adore respect|cherish love|despise hate|fear dread|"
    "teach train|examine inspect study review|count calculate|hire rent|borrow|"
    "abandon desert leave|chase pursue follow|lead guide direct|govern rule|"
    "adorn decorate|cover wrap|fasten tie|connect link|divide separate|mix|"
    "collect gather|empty drain|move shift|pull drag|carry bring fetch|refuse reject|"
    "adopt accept take|allow permit|prevent stop|release free|arrest detain|welcome greet|"
    "encounter meet|attack assault|photograph picture|kill slay|trade barter exchange|"
    "own possess have|copy imitate|describe depict|consult ask question|promise pledge|"
    "deceive betray|replace change alter modify|lose mislay|observe watch|lower drop|"
    "conquer defeat|visit tour|spoil ruin|cure heal|present offer",
    "|",
)
"""Verbs that a question may use for each other, where the object is a thing or a person."""
MOVING = words(
    "journey go voyage|hurry hasten rush|stroll walk wander roam|escape flee|"
    "retreat withdraw|depart leave|run race|climb ascend|march walk|vanish disappear|"
    "drift float|arrive come|emigrate move|return",
    "|",
)
REPORTS = words(
    "It is said that|People say that|As everybody knew,|It was written down that|"
    "The papers say that|One reads that|Nobody doubted that|They were told that|By all accounts|"
    "To this day they say that|Strange to say,|I remember that|We learned that|"
    "Let it be known that|It turned out that|As far as is known,|One may add that|In truth",
    "|",
)
"""What a statement may be told with."""
REQUESTS = words(
    "According to the text, |In the text, |Please tell me: |I would like to know: |"
    "As the text says, |Say: |Tell me, |Do you know: |"
    "One question: |From the document: |Quickly: |In short: ",
    "|",
)
"""What any question may begin with."""
NAMING = words(
    "Name the one who|Tell me who|Say who|Do you know who|Can you say who|Who was it that|"
    "Who is it that|What is the name of the person who|Which person|Find out who|"
    "Which man or woman",
    "|",
)
"""What may stand for the "Who" of a question for a subject."""

AUXILIARY = words("did does do has had will was were is are can may should must would")
SMALL = words(
    "the a an what for in at on to from it there every each once twice near inside under beyond "
    "past before after until since during with without through outside behind beside by as"
)
"""Words that are no names at the beginning of a sentence."""


def pair_synonyms(groups: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Return the others of its groups for each word of `groups`."""
    found: dict[str, set[str]] = {}
    for group in groups:
        members = group.split()
        for word in members:
            found.setdefault(word, set()).update(other for other in members if other != word)
    return {word: tuple(sorted(others)) for word, others in found.items() if others}


SYNONYMS = pair_synonyms(GROUPS)
MOVING_SYNONYMS = pair_synonyms(MOVING)


def draw_synonym(rng: Random, verb: str, moving: bool = False, share: float = 0.4) -> str:
    """Return another verb of the same meaning now and then, else the verb itself."""
    others = (MOVING_SYNONYMS if moving else SYNONYMS).get(verb)
    return rng.choice(others) if others and rng.random() < share else verb


def report(rng: Random, sentence: str) -> str:
    """Tell a statement in a longer way: as something that is said, known or remembered."""
    first = sentence.split(" ", 1)[0].lower()
    small = sentence[:1].lower() + sentence[1:] if first in SMALL else sentence
    return f"{rng.choice(REPORTS)} {small}"


def reword(rng: Random, question: str) -> str:
    """Ask in a longer way; a question for a subject may lose its "Who"."""
    asks_subject = question.startswith("Who ") and question.split(" ")[1] not in AUXILIARY
    if asks_subject and rng.random() < 0.6:
        naming = rng.choice(NAMING)
        rest = question.removeprefix("Who ")
        plain = naming.split(" ")[0] in ("Name", "Tell", "Say", "Find")
        return f"{naming} {rest.rstrip('?')}." if plain else f"{naming} {rest}"
    opening = rng.choice(REQUESTS)
    return opening + question[:1].lower() + question[1:]
