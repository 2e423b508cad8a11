"""Wordings filled by rule, wordings kept for development, and questions about text as it is."""

from indexmem_cli.train.kinds_people import Kind

# Attribute facts: "the <attribute> of <entity> is <value>", every part drawn apart.
ATTRIBUTES = {
    "code": "password|secret number|safe combination|serial number|registration|call sign|"
    "postcode|badge number|file number|locker number|key number|licence",
    "amount": "weight|height|length|depth|price|value|width|distance|rent|cost|area|age|"
    "salary|size|speed|fee|tax|wage|capacity|debt|budget|thickness|fine|reward|pension|income|"
    "fare|toll|temperature|duration|ransom|dowry|profit|loss",
    "person": "founder|owner|keeper|inventor|discoverer|author|captain|leader|teacher|architect|"
    "heir|patron|champion|tenant|pilot|hero|driver|agent|oldest friend|first wife|last king|"
    "chief engineer|head cook|favourite poet|worst enemy|godfather|manager|editor|composer|"
    "winner|sponsor|doctor|buyer|eldest son|only witness|favourite singer|boldest rider",
    "colour": "colour|flag colour|paint",
    "number": "shoe size|platform|shelf|floor|number of seats|page number|lane|"
    "number of doors|magic number|lucky number|room number|house number|score|rank|population|"
    "page count",
    "year": "founding year|year of completion|first year|year of the fire",
    "date": "opening date|birthday|date of sale|closing date|feast day",
    "place": "home town|birthplace|destination|capital|origin|harbour|next stop",
    "word": "name|nickname|motto|true name|title|brand|secret word|code name|slogan|greeting|"
    "war cry|signal|language|breed|religion|currency|family name|maiden name|watchword|spell",
    "room": "hiding place|usual place",
    "time": "opening hour|departure time|hour of arrival|closing time",
    "material": "material|main material",
    "job": "occupation|trade|former trade",
    "food": "main crop|favourite dish|chief export",
}
ENTITIES = ("the {site}", "the {thing}", "{person}", "{place}", "the {animal} of {person}")
TRAINING_ATTRIBUTE_STATEMENTS = (
    "The {attribute} of {entity} is {value}.",
    "The {attribute} of {entity} was {value}.",
    "{value} is the {attribute} of {entity}.",
    "Everyone knew that the {attribute} of {entity} was {value}.",
    "They wrote down {value} as the {attribute} of {entity}.",
    "As the {attribute} of {entity} they chose {value}.",
    "The {attribute} of {entity}, so it is said, is {value}.",
    "The {attribute} for {entity} is {value}.",
    "For {entity} the {attribute} is {value}.",
    "The {adjective} {attribute} of {entity} is {value}.",
    "{entity} has {value} as {adjective} {attribute}.",
    "The {attribute} given for {entity} was {value}.",
    "Remember that the {attribute} of {entity} is {value}.",
    "{value} was chosen as the {attribute} for {entity}.",
    "In the list {entity} stands with the {attribute} {value}.",
)
TRAINING_ATTRIBUTE_QUESTIONS = (
    "What is the {attribute} of {entity}?",
    "What was the {attribute} of {entity}?",
    "Tell me the {attribute} of {entity}.",
    "{entity}: what is the {attribute}?",
    "Give the {attribute} of {entity}.",
    "What does the text say is the {attribute} of {entity}?",
    "Which {attribute} has {entity}?",
    "Do you remember the {attribute} of {entity}?",
    "What is the {attribute} for {entity}?",
    "For {entity}, what is the {attribute}?",
    "Which {attribute} should I use for {entity}?",
    "I need the {attribute} of {entity}.",
    "Could you tell me the {attribute} for {entity}?",
    "What {attribute} does {entity} have?",
    "What {attribute} was given for {entity}?",
)
ATTRIBUTE_ADJECTIVES = ("official", "true", "usual", "present", "first", "last", "new", "secret")

# Deeds: base form, past, participle, sort of object. Every part of the sentence can be asked.
VERBS = (
    "buy bought bought thing|lay laid laid thing|store stored stored thing|"
    "bury buried buried thing|leave left left thing|place placed placed thing|"
    "paint painted painted thing|build built built site|"
    "discover discovered discovered place|find found found thing|write wrote written word|"
    "meet met met person2|visit visited visited place|defeat defeated defeated person2|"
    "steal stole stolen thing|invent invented invented thing|sell sold sold thing|"
    "found founded founded place|conquer conquered conquered place|"
    "destroy destroyed destroyed site|rule ruled ruled place|hide hid hidden thing|"
    "lose lost lost thing|teach taught taught person2|follow followed followed person2|"
    "kill killed killed animal|rescue rescued rescued person2|repair repaired repaired thing|"
    "describe described described animal|burn burnt burnt site|"
    "command commanded commanded site|marry married married person2|"
    "attack attacked attacked place|invade invaded invaded place|"
    "design designed designed site|translate translated translated word|"
    "bring brought brought thing|choose chose chosen word|see saw seen animal|"
    "draw drew drawn animal"
)
TRAINING_DEED_STATEMENTS = (
    "{subject} {past} {object} {preposition} {where} in {year}.",
    "In {year} {subject} {past} {object} {preposition} {where}.",
    "{subject} {past} {object} in {year}.",
    "{object} was {participle} by {subject} {preposition} {where} in {year}.",
    "{subject}, as we have seen, {past} {object} {preposition} {where}.",
    "{Preposition} {where} {object} was {participle} by {subject}.",
    "It was {subject} who {past} {object} in {year}.",
)
TRAINING_DEED_QUESTIONS = {
    "subject": (
        "Who {past} {object}?",
        "By whom was {object} {participle}?",
        "Who was it that {past} {object}?",
        "Who was {object} {participle} by?",
        "Which person {past} {object}?",
    ),
    "object": (
        "What did {subject} {base}?",
        "What was {participle} by {subject}?",
        "Who or what did {subject} {base}?",
    ),
    "where": (
        "Where did {subject} {base} {object}?",
        "Where was {object} {participle}?",
        "In which place did {subject} {base} {object}?",
        "In what place was {object} {participle} by {subject}?",
    ),
    "year": (
        "When did {subject} {base} {object}?",
        "When was {object} {participle}?",
        "In what year was {object} {participle} by {subject}?",
        "In which year did {subject} {base} {object}?",
        "What was the year when {subject} {past} {object}?",
    ),
}

# Deeds again, in other tenses: an auxiliary, and the form of the verb that follows it.
AUXILIARIES = {
    "has": "participle",
    "had": "participle",
    "will": "base",
    "must": "base",
    "can": "base",
    "would": "base",
}
TRAINING_TENSE_STATEMENTS = (
    "{subject} {auxiliary} {verb} {object} {preposition} {where}.",
    "{Preposition} {where} {subject} {auxiliary} {verb} {object}.",
    "{subject} {auxiliary} {verb} {object}, they say, {preposition} {where}.",
)
TRAINING_TENSE_QUESTIONS = {
    "subject": ("Who {auxiliary} {verb} {object}?", "Who is it that {auxiliary} {verb} {object}?"),
    "object": ("What {auxiliary} {subject} {verb}?", "Whom or what {auxiliary} {subject} {verb}?"),
    "where": ("Where {auxiliary} {subject} {verb} {object}?",),
}

# Never used in training: needles are measured with these.
DEVELOPMENT_KINDS: tuple[Kind, ...] = (
    (
        ("The number that unlocks the {thing} is {code}.",),
        {"code": ("Which number unlocks the {thing}?",)},
    ),
    (
        ("{person} travelled as far as {place} during {year}.",),
        {
            "place": ("To what place did {person} travel?",),
            "year": ("During which year did {person} travel to {place}?",),
            "person": ("Who travelled as far as {place}?",),
        },
    ),
    (
        ("{person} has hidden the {thing} inside {room}.",),
        {
            "room": ("Where has {person} hidden the {thing}?",),
            "person": ("Who has hidden the {thing}?",),
        },
    ),
    (
        ("The telephone extension for the {site} is {code}.",),
        {"code": ("What extension should I dial for the {site}?",)},
    ),
    (
        ("Every year the {site} receives {number} visitors.",),
        {"number": ("How many visitors does the {site} receive every year?",)},
    ),
    (
        ("The treaty of {place} was signed on {date}.",),
        {"date": ("When was the treaty of {place} signed?",)},
    ),
    (
        ("{person} inherited the {thing} from {person2}.",),
        {
            "person2": ("From whom did {person} inherit the {thing}?",),
            "thing": ("What did {person} inherit from {person2}?",),
        },
    ),
    (
        ("The best pupil of {person} was {person2}.",),
        {"person2": ("Who was the best pupil of {person}?",)},
    ),
    (
        ("Visitors to the {site} must wear {colour} gloves.",),
        {"colour": ("What colour of gloves must visitors to the {site} wear?",)},
    ),
    (
        ("The special magic word for {place} is {word}.",),
        {"word": ("What is the special magic word for {place}?",)},
    ),
)

# Nor these; and while those above were looked at when they failed, these never were.
BLIND_KINDS: tuple[Kind, ...] = (
    (
        ("Anyone at the {site} joins the wifi with {code}.",),
        {"code": ("With what does one join the wifi at the {site}?",)},
    ),
    (
        ("{person} was elected chairman of {place} back in {year}.",),
        {
            "place": ("Of what place was {person} elected chairman?",),
            "year": ("In which year was {person} elected chairman of {place}?",),
            "person": ("Who was elected chairman of {place}?",),
        },
    ),
    (
        ("{person} spilt the shampoo in {room}.",),
        {
            "room": ("Where did {person} spill the shampoo?",),
            "person": ("Who spilt the shampoo in {room}?",),
        },
    ),
    (
        ("Luggage bound for {place} is on carousel {code}.",),
        {"code": ("On which carousel is luggage bound for {place}?",)},
    ),
    (
        ("Into the recipe for {word} go {number} tomatoes.",),
        {"number": ("How many tomatoes go into the recipe for {word}?",)},
    ),
    (
        ("The volcano beyond {place} last erupted on {date}.",),
        {"date": ("When did the volcano beyond {place} last erupt?",)},
    ),
    (
        ("{person} quarrelled with {person2} about the {thing}.",),
        {
            "person2": ("With whom did {person} quarrel about the {thing}?",),
            "thing": ("About what did {person} quarrel with {person2}?",),
        },
    ),
    (
        ("The thesis of {person} was supervised by {person2}.",),
        {"person2": ("Who supervised the thesis of {person}?",)},
    ),
    (
        ("Goalkeepers at the {site} put on {colour} jerseys.",),
        {"colour": ("What colour are the jerseys that goalkeepers at the {site} put on?",)},
    ),
    (
        ("The submarine moored at {place} was nicknamed {word}.",),
        {"word": ("How was the submarine moored at {place} nicknamed?",)},
    ),
)

TRAINING_QUOTE_QUESTIONS = (
    'What follows this quotation: "{quote}"',
    'What comes after "{quote}"?',
    'Continue: "{quote}"',
    'How does the text go on after "{quote}"?',
    'Which words follow "{quote}"?',
)
TRAINING_GAP_QUESTIONS = (
    'Fill the gap: "{sentence}"',
    'Which words are missing: "{sentence}"',
    'What stands in the place of ____ in "{sentence}"?',
    "{sentence}",
)
TRAINING_SPEAKER_QUESTIONS = (
    'Who said "{line}"?',
    'Who wrote "{line}"?',
    'Which person said "{line}"?',
    'From whom is the message "{line}"?',
)
