"""Kinds of synthetic facts about things, places and events: their wordings for training.

A kind is a pair: statements, and for each slot that may be asked the questions for it. A slot
stands in braces; a digit after its name keeps two of one sort apart.
"""

from indexmem_cli.train.kinds_people import PEOPLE_KINDS, Kind

THING_KINDS: tuple[Kind, ...] = (
    (
        (
            "The access code of the {site} is {code}.",
            "To enter the {site} one needs the access code {code}.",
            "{code} is the access code of the {site}.",
            "The access code of the {site} was changed to {code}.",
        ),
        {
            "code": (
                "What is the access code of the {site}?",
                "Which access code does the {site} have?",
                "Tell me the access code of the {site}.",
                "What code opens the {site}?",
            ),
            "site": ("Which place has the access code {code}?", "What does the code {code} open?"),
        },
    ),
    (
        (
            "The {site} has {number} {counted}.",
            "There are {number} {counted} in the {site}.",
            "In the {site} they counted {number} {counted}.",
        ),
        {
            "number": (
                "How many {counted} does the {site} have?",
                "How many {counted} are there in the {site}?",
                "What is the number of {counted} in the {site}?",
            ),
            "site": ("What has {number} {counted}?", "Where are there {number} {counted}?"),
        },
    ),
    (
        (
            "The {site} stands {amount} from {place}.",
            "From {place} to the {site} it is {amount}.",
        ),
        {
            "amount": (
                "How far is the {site} from {place}?",
                "How far from {place} is the {site}?",
            ),
            "place": ("From which place is the {site} {amount}?",),
        },
    ),
    (
        (
            "The {thing} is made of {material}.",
            "They made the {thing} out of {material}.",
            "{person} made the {thing} of {material}.",
        ),
        {"material": ("What is the {thing} made of?", "Of what material is the {thing}?")},
    ),
    (
        (
            "The capital of {place} is {word}.",
            "{word} is the capital of {place}.",
            "{place}, whose capital is {word}, lies by the sea.",
        ),
        {
            "word": ("What is the capital of {place}?", "Which city is the capital of {place}?"),
            "place": ("Of which country is {word} the capital?", "What is {word} the capital of?"),
        },
    ),
    (
        (
            "The war between {place} and {place2} began in {year}.",
            "In {year} war broke out between {place} and {place2}.",
        ),
        {
            "year": ("When did the war between {place} and {place2} begin?",),
            "place2": ("With whom was {place} at war?", "Against which country did {place} fight?"),
        },
    ),
    (
        (
            "{place} has a population of {number} thousand.",
            "About {number} thousand people live in {place}.",
        ),
        {
            "number": ("How many thousand people live in {place}?",),
            "place": ("Where do {number} thousand people live?",),
        },
    ),
    (
        (
            "The {event} of {place} took place on {date}.",
            "On {date} the {event} of {place} began.",
            "The {event} of {place} happened on {date}, as all agree.",
        ),
        {
            "date": (
                "When did the {event} of {place} take place?",
                "On what date was the {event} of {place}?",
                "When was the {event} of {place}?",
                "What is the date of the {event} of {place}?",
            ),
            "event": ("What took place on {date}?",),
        },
    ),
    (
        (
            "The {event} of {place} ended in {year}.",
            "In {year} came the {event} of {place}.",
            "{person} was present at the {event} of {place} ({year}).",
        ),
        {
            "year": (
                "In what year was the {event} of {place}?",
                "When was the {event} of {place}?",
                "Which year saw the {event} of {place}?",
            ),
            "person": ("Who was present at the {event} of {place}?",),
        },
    ),
    (
        (
            "The {site} sells {number} {counted} {period}.",
            "They make {number} {counted} {period} in the {site}.",
            "{number} {counted} {period} leave the {site}.",
        ),
        {
            "number": (
                "How many {counted} does the {site} sell {period}?",
                "How many {counted} {period} come from the {site}?",
            ),
            "counted": ("What does the {site} sell {period}?",),
        },
    ),
    (
        (
            "To reach the {site}, call {code}.",
            "The number for calls to the {site} is {code}.",
            "Whoever needs the {site} should ring {code}.",
        ),
        {
            "code": (
                "What number reaches the {site}?",
                "Which number should one call for the {site}?",
                "How can I call the {site}?",
            ),
        },
    ),
    (
        (
            "{season} the {site} {need}s {number} {counted}.",
            "The {site} {need}s {number} {counted} {period}.",
        ),
        {
            "number": ("How many {counted} does the {site} {need}?",),
            "counted": ("What does the {site} {need}?",),
            "site": ("What {need}s {number} {counted}?",),
        },
    ),
)
TRAINING_KINDS = PEOPLE_KINDS + THING_KINDS
