"""Synthetic facts of any verb: subject, verb, object, and where, when, with or for whom.

A hand of wordings teaches those wordings; many verbs in many forms teach reading. No content word
of the wordings kept for measuring (templates.DEVELOPMENT_KINDS and BLIND_KINDS) is used here.
"""

from random import Random

from indexmem_cli.train import vocabulary
from indexmem_cli.train.rewording import draw_synonym
from indexmem_cli.train.words import ADJECTIVES, ANIMALS, SLOTS, words

VERBS = words(
    "accept acquire adjust admire adopt alter announce approach arrange assemble assist attend "
    "avoid await bake barter bless boil borrow bribe calculate capture carve challenge chase "
    "cherish clean climb close collect compose conceal condemn confuse connect consult cook copy "
    "correct count cover crush cure deceive declare decorate defend delay deliver demand deny "
    "deposit deserve desire detain devour dismiss display divide donate drain dry embrace employ "
    "empty enclose encounter endanger engrave enjoy entertain escort examine exchange exhibit "
    "expect explain export fasten fetch finish float fold forge frame furnish gather glue govern "
    "grant guard guess hammer handle harvest haunt heal heat hire honour import improve insult "
    "inspect invite iron judge kick launch learn lend lift load lock love lower mail manufacture "
    "mark measure melt mend mention milk miss mix modify move name navigate neglect note notice "
    "obey observe obtain offer open order organise pack pardon pass perform photograph plant "
    "pledge polish possess post praise prepare present preserve press print produce promise "
    "protect prove publish pull punish purchase pursue push raise reach recall recommend recover "
    "refuse register reject release remember remove rent replace report request resist restore "
    "reveal reward roll salute sample scold seal search select serve settle shake share shelter "
    "ship shorten sketch smuggle soak solve spoil stamp steer stitch stretch study supply support "
    "surprise surround survey tame taste tear test thank threaten touch trace trade transfer "
    "transport trust unload use value wash watch weigh welcome whisper wind wipe witness wrap "
    "yield"
)
MOVES = words(
    "advance arrive climb crawl dash depart descend drift emigrate escape gallop hasten hurry "
    "journey jump limp march move paddle pass race retire retreat return roam row rush sail "
    "stroll struggle swerve turn vanish venture voyage walk wander withdraw"
)
IRREGULAR = {
    "arise": "arose arisen", "break": "broke broken", "bring": "brought brought",
    "build": "built built", "buy": "bought bought", "catch": "caught caught",
    "choose": "chose chosen", "deal": "dealt dealt", "draw": "drew drawn", "drink": "drank drunk",
    "drive": "drove driven", "eat": "ate eaten", "feed": "fed fed", "fight": "fought fought",
    "find": "found found", "flee": "fled fled", "fly": "flew flown", "forget": "forgot forgotten",
    "get": "got got", "give": "gave given", "go": "went gone", "hang": "hung hung",
    "hear": "heard heard", "hold": "held held", "keep": "kept kept", "lead": "led led",
    "leave": "left left", "lend": "lent lent", "lose": "lost lost", "make": "made made",
    "meet": "met met", "pay": "paid paid", "read": "read read", "ride": "rode ridden",
    "ring": "rang rung", "run": "ran run", "see": "saw seen", "seek": "sought sought",
    "sell": "sold sold", "send": "sent sent", "shake": "shook shaken", "shoot": "shot shot",
    "sing": "sang sung", "sleep": "slept slept", "speak": "spoke spoken", "spend": "spent spent",
    "steal": "stole stolen", "swim": "swam swum", "swing": "swung swung", "take": "took taken",
    "teach": "taught taught", "tear": "tore torn", "tell": "told told", "throw": "threw thrown",
    "weave": "wove woven", "win": "won won", "wind": "wound wound",
    "withdraw": "withdrew withdrawn", "write": "wrote written",
}  # fmt: skip
NOUNS = words(
    "apples arrows axes bags balls bananas barrels baskets beds bees benches boats bones boots "
    "boxes bricks brushes buckets buttons cakes candles cannons cards carriages carts chairs "
    "chickens clocks coats cups deer diamonds dishes dresses drums ducks eagles eggs engines "
    "envelopes feathers figs flags flowers forks geese goats guests hats helmets herrings hinges "
    "houses jars jewels keys knights knives ladders lamps lemons letters lions locks loaves "
    "machines maps masks mirrors monks mules nails needles nets nuns nuts oars oranges orders "
    "oysters paintings parcels passengers peaches pearls pens pictures pigeons pills pipes planks "
    "plates players poems potatoes prisoners prizes questions rabbits ribbons riders rings "
    "rockets roofs ropes roses sacks saddles screws seats seeds shares shells shields shoes "
    "shovels signs singers songs spades spoons stamps stars stones stories students swords tables "
    "tents tickets tools toys trains travellers tyres uniforms vases violins voters wagons "
    "watches whales widows wires wolves women writers"
)
ADVERBS = words("once|secretly|at last|finally|later|often|in the end|also|soon|then|first", "|")

MOVING_FRACTION = 0.3
"""Share of sentences whose verb takes no object, but a place that someone goes to or through."""

ALL_VERBS = (*VERBS, *IRREGULAR, *vocabulary.VERBS)
ALL_NOUNS = (*NOUNS, *vocabulary.COUNTED)

# Preposition and sort of what follows it.
PHRASES = (
    *((prep, "place") for prep in words("to from towards through near in beyond past in to from")),
    *((prep, "site") for prep in words("at inside outside behind near from to beside")),
    *((prep, "person") for prep in words("from for with against to without beside from with for")),
    *((prep, "year") for prep in words("in in in before after until since")),
    *((prep, "date") for prep in words("on on on before after until")),
    *((prep, "thing") for prep in words("with without for under on")),
    ("at", "time"),
    ("for", "amount"),
    ("during", "event"),
    ("inside", "room"),
    ("under", "room"),
)  # fmt: skip
ASKING = {
    "place": ("which place", "what place", "which town", "what town", "which country", "where"),
    "site": ("which building", "what place", "what", "which place", "where"),
    "person": ("whom", "whom", "which person", "who"),
    "year": ("which year", "what year", "when"),
    "date": ("what date", "which date", "what day", "when"),
    "thing": ("what", "which thing", "what"),
    "time": ("what time", "which hour", "when"),
    "amount": ("how much", "what amount", "what"),
    "event": ("which event", "what event", "what", "when"),
    "room": ("which place", "what", "where"),
}
LONGER = {
    ("to", "place"): words(
        "all the way to|right up to|on to|down to|back to|over to|into|up into|in the direction of|"
        "straight for|as deep as|no nearer than|by land to|by sea to",
        "|",
    ),
    ("from", "place"): ("out of", "away from", "all the way from", "right out of"),
    ("to", "site"): ("up to", "over to", "as near as", "right into"),
    ("from", "site"): ("out of", "away from"),
    ("to", "person"): ("over to", "back to", "at last to"),
    ("near", "place"): ("close to", "not far from"),
    ("in", "place"): ("somewhere in", "right in the middle of"),
    ("in", "year"): ("in the year", "as early as", "as late as", "in the course of", "early in"),
    ("on", "date"): ("as early as", "as late as"),
    ("from", "person"): ("out of the hands of", "by the hand of"),
    ("with", "person"): ("together with", "in the company of"),
    ("for", "person"): ("on behalf of", "in the service of"),
    ("inside", "room"): ("deep inside", "within"),
    ("at", "site"): ("right at", "close by"),
}
"""Ways to say a preposition that a question asks with alone."""
OBVIOUS = {"in", "at", "on", "inside", "during"}
"""Prepositions that "where" and "when" already hold."""

HABITS = words(
    "each year|every day|each month|every week|each summer|every winter|every night|each morning|"
    "every Sunday|each season|every decade|each time|twice a year|once a month|as a rule",
    "|",
)


def inflect(verb: str) -> tuple[str, str, str]:
    """Return past, participle and third person of a verb."""
    third = verb + "s"
    if verb[-1] in "sxzo" or verb[-2:] in ("sh", "ch"):
        third = verb + "es"
    elif verb[-1] == "y" and verb[-2] not in "aeiou":
        third = verb[:-1] + "ies"
    if verb in IRREGULAR:
        past, participle = IRREGULAR[verb].split()
        return past, participle, third
    if verb[-1] == "e":
        past = verb + "d"
    elif verb[-1] == "y" and verb[-2] not in "aeiou":
        past = verb[:-1] + "ied"
    else:
        past = verb + "ed"
    return past, past, third


def draw_noun(rng: Random, sort: str) -> str:
    """Draw a value of a sort with its article."""
    if sort == "event":
        return f"the {SLOTS['event'](rng)} of {SLOTS['place'](rng)}"
    value = SLOTS[sort](rng)
    if sort not in ("site", "thing") or value.startswith("the "):
        return value
    return f"the {value}"


def draw_subject(rng: Random, form: Random) -> tuple[str, str]:
    """Draw a subject of a sort that `form` draws, and the word that asks for it."""
    style = form.random()
    if style < 0.7:
        return draw_noun(rng, "person"), "who"
    if style < 0.78:
        return draw_noun(rng, "site"), "what"
    if style < 0.9:
        return draw_common(rng), "what"
    if style < 0.95:
        return f"the {rng.choice(ANIMALS)} of {SLOTS['person'](rng)}", "what"
    return draw_noun(rng, "place"), "which place"


def draw_common(rng: Random) -> str:
    """Draw a thing by a common noun, now and then with whose it is or what it is like."""
    noun = rng.choice(vocabulary.THINGS)
    style = rng.random()
    if style < 0.35:
        return f"the {noun} of {draw_noun(rng, rng.choice(('person', 'place', 'site')))}"
    if style < 0.5:
        return f"the {noun} {rng.choice(('near', 'in', 'at'))} {SLOTS['place'](rng)}"
    return f"the {rng.choice(ADJECTIVES)} {noun}" if style < 0.75 else f"the {noun}"


def draw_object(rng: Random, form: Random) -> tuple[str, str, str]:
    """Draw an object, the words that ask for it, and the answer: a count answers "how many"."""
    sorts = ("thing", "common", "person", "count", "place", "food", "word")
    sort, noun = form.choices(sorts, (3, 3, 2, 4, 1, 1, 1))[0], form.choice(ALL_NOUNS)
    if sort == "common":
        value = draw_common(rng)
        return value, "what", value
    if sort == "count":
        number = SLOTS["number"](rng)
        return f"{number} {noun}", f"how many {noun}", number
    value = draw_noun(rng, sort)
    asking = {"person": ("whom", "who"), "place": ("which place", "what")}.get(sort, ("what",))
    return value, rng.choice(asking), value


def draw_phrases(rng: Random, form: Random, moving: bool) -> list[tuple[str, str, str]]:
    """Draw one or two phrases: preposition, sort, value; a move says where, if anything."""
    count = form.choice((1, 1, 2)) if moving else form.choice((0, 1, 1, 2))
    drawn: list[tuple[str, str, str]] = []
    while len(drawn) < count:
        prep, sort = form.choice(PHRASES[:11] if moving and not drawn else PHRASES)
        if prep not in {p for p, _, _ in drawn} and sort not in {s for _, s, _ in drawn}:
            drawn.append((prep, sort, draw_noun(rng, sort)))
    return drawn


def lengthen(rng: Random, prep: str, sort: str) -> str:
    """Now and then say a preposition in more words."""
    longer = LONGER.get((prep, sort))
    return rng.choice(longer) if longer and rng.random() < 0.5 else prep


def make_frame(rng: Random, form: Random | None = None) -> tuple[str, list[tuple[str, str]]]:
    """Make a sentence and the pairs of question and answer that it holds.

    `form` draws all but values, order and the wording of questions: `Random` objects of one seed
    make sentences alike. None: `rng` draws that too.
    """
    form = form or rng
    moving = form.random() < MOVING_FRACTION
    verb = form.choice(MOVES if moving else ALL_VERBS)
    past, participle, third = inflect(verb)
    asked = draw_synonym(form, verb, moving)
    asked_past, asked_participle, asked_third = inflect(asked)
    subject, asks_subject = draw_subject(rng, form)
    thing, asks_thing, counted = ("", "", "") if moving else draw_object(rng, form)
    phrases = draw_phrases(rng, form, moving)
    tense = form.choices(("past", "has", "had", "will", "now", "passive"), (10, 2, 2, 2, 3, 4))[0]
    if tense == "passive" and not thing:
        tense = "past"
    said = {"past": past, "has": f"has {participle}", "had": f"had {participle}"}
    said |= {"will": f"will {verb}", "now": third}
    asks = {"past": asked_past, "has": f"has {asked_participle}", "had": f"had {asked_participle}"}
    asks |= {"will": f"will {asked}", "now": asked_third}
    helps = {"past": ("did", asked), "has": ("has", asked_participle)}
    helps |= {"had": ("had", asked_participle), "will": ("will", asked), "now": ("does", asked)}
    told = [f"{lengthen(form, prep, sort)} {value}" for prep, sort, value in phrases]
    some = rng.sample(told, rng.randint(0 if thing else 1, len(told)))
    adverb = f"{rng.choice(ADVERBS)} " if rng.random() < 0.12 else ""
    front = [told.pop(rng.randrange(len(told)))] if told and rng.random() < 0.35 else []
    rng.shuffle(told)
    if tense == "passive":
        were = "were" if asks_thing.startswith("how many") else "was"
        core = f"{thing} {were} {adverb}{participle} by {subject}"
        by_whom = f"by whom {were} {thing} {asked_participle}"
        asked_subject = [by_whom, f"who {asked_past} {thing}"]
        asked_thing = [f"{asks_thing} {were} {asked_participle} by {subject}"]
        aux, rest = were, f"{thing} {asked_participle}"
    else:
        core = " ".join(f"{subject} {adverb}{said[tense]} {thing}".split())
        helping, main = helps[tense]
        asked_subject = [f"{asks_subject} {asks[tense]} {thing}"]
        asked_thing = [f"{asks_thing} {helping} {subject} {main}"]
        aux, rest = helping, f"{subject} {main} {thing}"
    pairs = [(close(rng.choice(asked_subject), *some), subject)]
    if thing:
        pairs.append((close(rng.choice(asked_thing), *some), counted))
    for prep, sort, value in phrases:
        pairs.append((ask_phrase(rng, prep, sort, aux, rest), value))
    body = " ".join([core, *told])
    if front:
        comma = "," if rng.random() < 0.8 else ""
        body = f"{front[0]}{comma} {body}"
    return end(body), pairs


def make_habit(rng: Random) -> tuple[str, list[tuple[str, str]]]:
    """Make a sentence of what is done again and again, in the present, mostly counted."""
    verb = rng.choice(ALL_VERBS)
    third = inflect(verb)[2]
    subject, asks_subject = draw_subject(rng, rng)
    if rng.random() < 0.5:
        subject, asks_subject = draw_noun(rng, "site"), "what"
    number, noun = SLOTS["number"](rng), rng.choice(ALL_NOUNS)
    thing, asks_thing, answer = f"{number} {noun}", f"how many {noun}", number
    if rng.random() < 0.2:
        thing, asks_thing, answer = draw_object(rng, rng)
    often = rng.choice(HABITS)
    said = rng.choice(("", often))
    asked = draw_synonym(rng, verb)
    body = f"{often} {subject} {third} {thing}"
    if rng.random() < 0.4:
        body = f"{subject} {third} {thing} {often}"
    pairs = [
        (close(asks_thing, "does", subject, asked, said), answer),
        (close(asks_subject, inflect(asked)[2], thing, said), subject),
    ]
    return end(body), pairs


def end(body: str) -> str:
    """Begin a statement with a capital and end it."""
    return f"{body[:1].upper()}{body[1:]}."


def close(*parts: str) -> str:
    """Join the parts of a question and close it."""
    return " ".join(" ".join(parts).split()) + "?"


def ask_phrase(rng: Random, prep: str, sort: str, aux: str, rest: str) -> str:
    """Ask for what follows a preposition, which stands first, last, or in the question word."""
    word = rng.choice(ASKING[sort])
    if word in ("where", "when"):
        if prep in OBVIOUS:
            return close(word, aux, rest)
        return close(prep, word, aux, rest) if rng.random() < 0.5 else close(word, aux, rest, prep)
    if rng.random() < 0.6 and word != "who":
        return close(prep, word, aux, rest)
    return close(word, aux, rest, prep)
