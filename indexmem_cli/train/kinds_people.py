"""Kinds of synthetic facts about people: their wordings for training.

A kind is a pair: statements, and for each slot that may be asked the questions for it. A slot
stands in braces; a digit after its name keeps two of one sort apart.
"""

Kind = tuple[tuple[str, ...], dict[str, tuple[str, ...]]]

PEOPLE_KINDS: tuple[Kind, ...] = (
    (
        (
            "{person} sailed to {place} in {year}.",
            "In {year} {person} sailed to {place}.",
            "It was in {year} that {person} sailed to {place}.",
        ),
        {
            "person": ("Who sailed to {place}?", "Who was it that sailed to {place} in {year}?"),
            "place": ("Where did {person} sail?", "To which place did {person} sail in {year}?"),
            "year": (
                "When did {person} sail to {place}?",
                "In which year did {person} sail to {place}?",
                "What year was it when {person} sailed to {place}?",
            ),
        },
    ),
    (
        (
            "{person} keeps the {thing} in {room}.",
            "The {thing} is kept by {person} in {room}.",
            "In {room} {person} keeps the {thing}.",
        ),
        {
            "room": ("Where does {person} keep the {thing}?", "Where is the {thing} kept?"),
            "person": ("Who keeps the {thing}?", "By whom is the {thing} kept?"),
            "thing": ("What does {person} keep in {room}?", "What is kept in {room} by {person}?"),
        },
    ),
    (
        (
            "{person} was born in {place} in {year}.",
            "Born in {place} in {year}, {person} was the youngest of the family.",
            "{person} came into the world in {place} in the year {year}.",
        ),
        {
            "place": ("Where was {person} born?", "In what town was {person} born?"),
            "year": ("When was {person} born?", "In what year was {person} born?"),
            "person": ("Who was born in {place}?",),
        },
    ),
    (
        (
            "{person} died in {place} on {date}.",
            "On {date} {person} died in {place}.",
        ),
        {
            "place": ("Where did {person} die?", "In which town did {person} die?"),
            "date": ("When did {person} die?", "On what date did {person} die?"),
            "person": ("Who died in {place}?", "Who died on {date}?"),
        },
    ),
    (
        (
            "{person} works as a {job} in {place}.",
            "In {place} {person} works as a {job}.",
            "{person}, a {job} from {place}, arrived first.",
            "{person}, who was a {job} in {place}, said nothing.",
        ),
        {
            "job": (
                "What is the work of {person}?",
                "What does {person} work as?",
                "What was the job of {person}?",
                "What was {person}'s profession?",
            ),
            "place": ("Where does {person} work?", "Where does {person} come from?"),
            "person": ("Who is a {job} in {place}?", "Who was the {job} from {place}?"),
        },
    ),
    (
        (
            "{person} has a {animal} called {word}.",
            "The {animal} of {person} is called {word}.",
            "{word} is the name of {person}'s {animal}.",
        ),
        {
            "word": (
                "What is the {animal} of {person} called?",
                "What is the name of {person}'s {animal}?",
            ),
            "person": ("Who has a {animal} called {word}?", "To whom does {word} belong?"),
            "animal": ("What animal is {word}?", "Which animal does {person} have?"),
        },
    ),
    (
        (
            "The {site} was built by {person} in {year}.",
            "{person} built the {site} in {year}.",
            "In {year} the {site} was built by {person}.",
        ),
        {
            "person": ("Who built the {site}?", "By whom was the {site} built?"),
            "year": ("When was the {site} built?", "In what year did {person} build the {site}?"),
            "site": ("What did {person} build?", "What was built in {year}?"),
        },
    ),
    (
        (
            "The {thing} belongs to {person}.",
            "{person} is the owner of the {thing}.",
            "The {thing} has belonged to {person} for years.",
        ),
        {
            "person": ("Who owns the {thing}?", "To whom does the {thing} belong?"),
            "thing": ("What does {person} own?", "What belongs to {person}?"),
        },
    ),
    (
        (
            "{person} paid {amount} for the {thing}.",
            "The {thing} cost {person} {amount}.",
            "For the {thing} {person} paid {amount}.",
        ),
        {
            "amount": ("How much did {person} pay for the {thing}?", "What did the {thing} cost?"),
            "thing": ("What did {person} pay {amount} for?",),
            "person": ("Who paid for the {thing}?", "Who paid {amount}?"),
        },
    ),
    (
        (
            "{person} married {person2} in {year}.",
            "In {year} {person} was married to {person2}.",
            "{person} and {person2} were married in {year}.",
        ),
        {
            "person2": ("Whom did {person} marry?", "Who was {person} married to?"),
            "year": ("When did {person} marry {person2}?", "When was {person} married?"),
        },
    ),
    (
        (
            "The meeting with {person} begins at {time} on {day}.",
            "At {time} on {day} there is a meeting with {person}.",
            "On {day} at {time} we shall meet {person}.",
        ),
        {
            "time": (
                "At what time is the meeting with {person}?",
                "What time do we meet {person}?",
            ),
            "day": ("On which day is the meeting with {person}?", "What day do we meet {person}?"),
            "person": ("Who is the meeting on {day} with?", "Whom do we meet at {time}?"),
        },
    ),
    (
        (
            "{person} painted the {site} {colour}.",
            "The {site} was painted {colour} by {person}.",
        ),
        {
            "colour": ("What colour is the {site}?", "Which colour did {person} paint the {site}?"),
            "person": ("Who painted the {site}?",),
            "site": ("What did {person} paint?",),
        },
    ),
    (
        (
            "{person} eats nothing but {food}.",
            "The favourite food of {person} is {food}.",
            "{person} likes {food} best of all.",
        ),
        {
            "food": ("What does {person} like to eat?", "What is the favourite food of {person}?"),
            "person": ("Who likes {food} best?", "Whose favourite food is {food}?"),
        },
    ),
    (
        (
            "The {job} of {place} was {person}.",
            "{person} became the {job} of {place} in {year}.",
            "{person}, the {job} of {place}, had come too.",
        ),
        {
            "person": ("Who was the {job} of {place}?", "Name the {job} of {place}."),
            "place": ("Of which place was {person} the {job}?",),
            "job": ("What was {person} in {place}?", "What did {person} become?"),
        },
    ),
    (
        (
            "{person} gave the {thing} to {person2}.",
            "{person2} was given the {thing} by {person}.",
            "The {thing} was given to {person2} by {person}.",
        ),
        {
            "person2": ("To whom did {person} give the {thing}?", "Who was given the {thing}?"),
            "person": ("Who gave the {thing} to {person2}?", "Who gave away the {thing}?"),
            "thing": ("What did {person} give to {person2}?", "What was {person2} given?"),
        },
    ),
    (
        (
            "The {relation} of {person} is {person2}.",
            "{person}'s {relation} was {person2}.",
            "{person2}, the {relation} of {person}, opened the door.",
            "{person2} was the {relation} of {person}.",
        ),
        {
            "person2": (
                "Who is the {relation} of {person}?",
                "What is the name of {person}'s {relation}?",
                "Who was {person}'s {relation}?",
            ),
            "person": ("Whose {relation} is {person2}?", "Of whom is {person2} the {relation}?"),
            "relation": ("What is {person2} to {person}?",),
        },
    ),
    (
        (
            "{person} wears a {colour} coat {period}.",
            "The coat that {person} wears {period} is {colour}.",
            "{person} must not forget the {colour} coat.",
        ),
        {
            "colour": ("What colour is the coat of {person}?", "Which coat does {person} wear?"),
            "person": ("Who wears a {colour} coat?", "Whose coat is {colour}?"),
        },
    ),
    (
        (
            "{person} got the {thing} from {person2} in {place}.",
            "{person2} left the {thing} to {person}.",
            "From {person2} the {thing} passed to {person}.",
        ),
        {
            "person2": (
                "From whom did {person} get the {thing}?",
                "Who left {person} the {thing}?",
            ),
            "person": ("Who got the {thing}?", "Who has the {thing} now?"),
            "thing": ("What did {person} get from {person2}?", "What did {person2} leave?"),
            "place": ("Where did {person} get the {thing}?",),
        },
    ),
    (
        (
            "{person} {step}ed to {place} in {year}.",
            "In {year} {person} {step}ed from {place2} to {place}.",
            "{person} {step}ed all the way to {place}.",
        ),
        {
            "place": ("Where did {person} {step} to?", "To which place did {person} {step}?"),
            "person": ("Who {step}ed to {place}?", "Who was it that {step}ed to {place}?"),
            "year": ("When did {person} {step} to {place}?",),
            "place2": ("Where did {person} {step} from?",),
        },
    ),
    (
        (
            "{person} {stay}ed in {place} until {year}.",
            "Until {year} {person} {stay}ed in {place}.",
            "{person} {stay}ed at the {site} for {number} days.",
        ),
        {
            "place": ("Where did {person} {stay}?", "In which town did {person} {stay}?"),
            "site": ("Where did {person} {stay}?", "At what place did {person} {stay}?"),
            "person": ("Who {stay}ed in {place}?", "Who {stay}ed at the {site}?"),
            "year": ("Until when did {person} {stay} in {place}?",),
            "number": ("How many days did {person} {stay} at the {site}?",),
        },
    ),
)
