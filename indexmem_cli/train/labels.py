"""Synthetic facts of any noun: a label, its value, and the thing, place or person it serves.

"The tram ticket for the north mill is R-417." The question asks with a verb of its own ("What
ticket should I buy for the north mill?"), so noun and name alone lead to the value. No content
word of the wordings kept for measuring (templates.DEVELOPMENT_KINDS and BLIND_KINDS) is used here.
"""

from random import Random

from indexmem_cli.train import vocabulary
from indexmem_cli.train.frames import ALL_VERBS, draw_noun, inflect
from indexmem_cli.train.words import SLOTS, words

LABELS = words(
    "address aisle alarm anthem badge band batch bay berth bin bolt booth box bus button cabin "
    "call card carriage case certificate channel chapter charge chart chord circuit class clue "
    "coach compartment counter course coupon court crate crest cue cylinder deck delivery desk "
    "dock docket door dose draft drawer emblem entry envelope exercise exit ferry field file "
    "filter flag flight folder form formula frequency fuse gate gauge gear grade grant grid group "
    "handle hook hotline hymn index invoice item key lane layer lecture lens lesson letter lever "
    "licence line link list locker log lot map mark mask measure medicine membership message "
    "mixture mode motor note notice offer order page paragraph parcel part pass passage patent "
    "path pattern permit phone phrase pill pin pipe plan plate plot plug pole policy port "
    "position prefix prescription procedure programme protocol quota rail rank ration reading "
    "receipt record reference remedy reply report request reservation ribbon ring road room route "
    "row rule sample scale screw seal seat section sequence series service session setting shade "
    "sheet shelf shift ship sign signal size slot socket song stage stall stamp station stop "
    "strap stream string switch symbol tab table tag tank tap tape target tariff task tax team "
    "terminal test ticket tile timetable token tool track train tram transfer trial tube tune "
    "tunnel turn valve vehicle verse version voltage volume voucher wagon watchword window wing "
    "wire zone"
)
"""Things that come with a code or a number."""
QUALITIES = words(
    "new old secret spare second night winter summer main private public local final railway army "
    "harbour city guest staff emergency fire weekend evening garden water radio factory reserve"
)
USES = words(
    "use enter type quote give ring press say choose set try bring show ask buy write note take "
    "name cite pick read order request keep mention pay select"
)
MODALS = (
    ("should", "I"), ("must", "I"), ("do", "I"), ("can", "we"), ("should", "one"),
    ("must", "guests"), ("would", "you"), ("shall", "we"), ("did", "they"), ("may", "people"),
)  # fmt: skip
STATEMENTS = (
    "The {label} for {entity} is {value}.",
    "The {quality} {label} for {entity} is {value}.",
    "The {quality} {label} of {entity} is {value}.",
    "The {label} for {entity} was {value}.",
    "For {entity} the {quality} {label} is {value}.",
    "{value} is the {quality} {label} for {entity}.",
    "For {entity} take the {label} {value}.",
    "The {label} which {third} {entity} is {value}.",
    "What {third} {entity} is the {quality} {label} {value}.",
    "{value} is the {label} that {third} {entity}.",
)
QUESTIONS = (
    "What {label} {modal} {who} {use} for {entity}?",
    "Which {label} {modal} {who} {use} for {entity}?",
    "For {entity}, which {label} {modal} {who} {use}?",
    "What is the {label} for {entity}?",
    "Which {label} is for {entity}?",
)
ACTING_QUESTIONS = (
    "Which {label} {third} {entity}?",
    "What {label} {third} {entity}?",
    "What is the {label} that {third} {entity}?",
)
"""Where the statement says what the label does to the entity."""
ENTITIES = ("site", "site", "thing", "person", "place", "event")
SORTS = ("code", "code", "code", "number", "word", "colour", "time", "person", "amount")


def make_label(rng: Random, form: Random | None = None) -> tuple[str, str, str]:
    """Make a statement, a question, and its answer; `form` as in `frames.make_frame`."""
    form = form or rng
    statement = form.choice(STATEMENTS)
    acting = "{third}" in statement
    modal, who = rng.choice(MODALS)
    values = {
        "label": form.choice((*LABELS, *vocabulary.THINGS)),
        "quality": form.choice(QUALITIES),
        "entity": draw_noun(rng, form.choice(ENTITIES)),
        "third": inflect(form.choice(ALL_VERBS))[2],
        "value": SLOTS[form.choice(SORTS)](rng),
        "modal": modal,
        "who": who,
        "use": rng.choice(USES),
    }
    question = rng.choice(ACTING_QUESTIONS if acting else QUESTIONS)
    return statement.format(**values), question.format(**values), values["value"]
