"""Questions made from the sentences of ordinary prose, by their form alone."""

import re
from collections.abc import Callable
from random import Random

from indexmem_cli.train.tasks import Turn
from indexmem_cli.train.templates import TRAINING_GAP_QUESTIONS, TRAINING_QUOTE_QUESTIONS
from indexmem_cli.train.words import words

MAX_ANSWER_CHARS = 150
MAX_SENTENCE_CHARS = 300
NAME_WORDS = r"[A-Z][a-z]+(?: of| the| de)?(?: [A-Z][a-z]+)*"
NAME = re.compile(rf"(?<=[a-z,;] )(?:{NAME_WORDS}|[0-9][0-9,.:]*\b)")
WORD_PAIR = re.compile(r"(?<= )[a-z]{4,} [a-z]{4,}")
NUMBER = (
    r"(?:[0-9][0-9,]*[0-9]|(?:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|fifteen|"
    r"twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|a hundred)(?:-[a-z]+)?)"
    r"(?: hundred| thousand| million)?"
)
BASE_FORMS = dict(
    pair.split("/")
    for pair in words(
        "made/make took/take built/build gave/give found/find brought/bring wrote/write sent/send "
        "led/lead won/win lost/lose held/hold left/leave met/meet saw/see became/become bought/buy "
        "fought/fight defeated/defeat conquered/conquer founded/found invaded/invade taught/teach "
        "captured/capture discovered/discover invented/invent killed/kill married/marry sold/sell "
        "attacked/attack destroyed/destroy established/establish created/create ruled/rule "
        "signed/sign crossed/cross entered/enter reached/reach ordered/order received/receive "
        "formed/form introduced/introduce published/publish wanted/want used/use produced/produce "
        "developed/develop provided/provide kept/keep carried/carry opened/open visited/visit "
        "passed/pass occupied/occupy painted/paint studied/study proposed/propose told/tell "
        "offered/offer asked/ask followed/follow refused/refuse joined/join needed/need loved/love "
        "knew/know heard/hear spent/spend caught/catch drew/draw wore/wear raised/raise"
    )
)
SUBJECT_WORDS = (
    r"((?:The |Mr\. |Mrs\. |Dr\. |St\. )?[A-Z][a-z]+(?: [A-Z][a-z]+| of [A-Z][a-z]+){0,3})"
)
SUBJECT = re.compile(
    rf"^{SUBJECT_WORDS} ((?:was|were|is|are|has|came|went|began|fell|said|put|stood|"
    rf"{'|'.join(BASE_FORMS)}|[a-z]{{2,}}ed) .*)$"
)
OBJECT = re.compile(
    rf"(?:^|(?<=[,;] ))([Hh]e|[Ss]he|[Tt]hey|{SUBJECT_WORDS[1:-1]}) "
    rf"({'|'.join(BASE_FORMS)}) ([^,;:.?!]{{4,70}})[,;:.]"
)
NOT_SUBJECTS = words(
    "He She It They We You There This That These Those But And When Then What Who Here In At On "
    "If As So For Yet Now Not Nothing Nobody One Some Many Most All Both Each Every No His Her "
    "Their My Our Your Its Such Another Other Others Only Even Never Thus Perhaps Indeed Why How "
    "Which Where Number"
)
YEAR = re.compile(
    r",? \(?[Ii]n ((?:the year )?[12][0-9]{3}|[0-9]{1,4} (?:B\. ?C\.|A\. ?D\.))\)?,?(?= |\.|$)"
)
COUNT = re.compile(
    rf"(?<![.,(0-9])\b({NUMBER}) ([a-z]{{3,}}s|men|people|children)((?: [a-z]+){{0,6}})(?=[ ,.;])"
)
ROLE = "king|queen|son|daughter|wife|brother|capital|leader|founder|author|chief|emperor"
APPOSITION = re.compile(
    rf"\b({NAME_WORDS}), ((?:the|an?) (?:[a-z]+ )?(?:{ROLE})\b[^,.;:\n]{{0,50}})[,.;]"
)
CALLED = re.compile(rf"\b((?:a|an|the) [a-z][a-z ]{{2,40}}) (called|named) ({NAME_WORDS})")


def ask_subject(rng: Random, sentence: str) -> Turn | None:
    """Turn a statement into a question for its subject."""
    match = SUBJECT.match(sentence)
    if not match or match[1] == "The" or match[1].split(" ")[0] in NOT_SUBJECTS:
        return None
    rest = match[2].rstrip(".;:?! ")
    parts = rest.split(" ")
    if len(parts) > 8 and rng.random() < 0.5:
        rest = " ".join(parts[: rng.randint(5, 8)])
    askers = ("Who", "Who", "What", "Who or what")
    asker = "What" if match[1].startswith("The ") else rng.choice(askers)
    return Turn(f"{asker} {rest}?", match[1])


def ask_object(rng: Random, sentence: str) -> Turn | None:
    """Ask what somebody did something to."""
    match = OBJECT.search(sentence)
    if not match or match[1].split(" ")[0] in NOT_SUBJECTS[4:]:
        return None
    asker = rng.choice(("What did", "What did", "Whom or what did"))
    actor = match[1]
    if actor.split(" ")[0] in ("The", "He", "She", "They"):
        actor = actor[:1].lower() + actor[1:]
    return Turn(f"{asker} {actor} {BASE_FORMS[match[2]]}?", match[3])


def ask_year(rng: Random, sentence: str) -> Turn | None:
    """Ask when something happened that `sentence` dates."""
    match = YEAR.search(" " + sentence)
    if not match:
        return None
    padded = " " + sentence
    told = (padded[: match.start()] + padded[match.end() :]).strip(".;:, ")
    asker = rng.choice(("When", "In what year", "In which year"))
    link = rng.choice((" was it that", ":", ""))
    return Turn(f"{asker}{link} {told}?", match[1].removeprefix("the year "))


def ask_count(rng: Random, sentence: str) -> Turn | None:
    """Ask how many there were of what `sentence` counts."""
    match = COUNT.search(sentence)
    if not match:
        return None
    before = sentence[max(0, match.start() - 50) : match.start()].split(" ", 1)[-1].strip(" ,;")
    if before and rng.random() < 0.5:
        return Turn(f"{before} how many {match[2]}{match[3]}?", match[1])
    return Turn(f"How many {match[2]}{match[3]}?", match[1])


def ask_apposition(rng: Random, sentence: str) -> Turn | None:
    """Ask who bears a description that follows a name."""
    match = APPOSITION.search(sentence)
    if not match or match[1].split(" ")[0] in NOT_SUBJECTS:
        return None
    if rng.random() < 0.3:
        return Turn(
            f"{rng.choice(('Who was', 'Who or what is', 'What was'))} {match[1]}?", match[2]
        )
    return Turn(f"{rng.choice(('Who was', 'Who is', 'What was'))} {match[2]}?", match[1])


def ask_called(rng: Random, sentence: str) -> Turn | None:
    """Ask for the name of what `sentence` introduces with its name."""
    match = CALLED.search(sentence)
    if not match:
        return None
    described = re.sub("^an? ", "the ", match[1])
    forms = (f"What was {described} {match[2]}?", f"What was the name of {described}?")
    return Turn(rng.choice(forms), match[3])


def ask_quote(rng: Random, sentence: str) -> Turn | None:
    """Ask for the words that follow a quotation."""
    parts = sentence.split(" ")
    quoted, wanted = rng.randint(5, 9), rng.randint(3, 9)
    if len(parts) < quoted + wanted + 1:
        return None
    start = rng.randrange(len(parts) - quoted - wanted)
    middle = start + quoted
    quote = " ".join(parts[start:middle])
    question = rng.choice(TRAINING_QUOTE_QUESTIONS).format(quote=quote)
    return Turn(question, " ".join(parts[middle : middle + wanted]))


def ask_gap(rng: Random, sentence: str) -> Turn | None:
    """Ask for a name, a number or some words cut out of `sentence`."""
    matches = list(NAME.finditer(sentence)) or list(WORD_PAIR.finditer(sentence))
    if not matches:
        return None
    match = rng.choice(matches)
    before, after = sentence[: match.start()], sentence[match.end() :]
    if len(sentence) > 60 and rng.random() < 0.5:
        before = before[-40:].split(" ", 1)[-1]
        after = after[:40].rsplit(" ", 1)[0]
    question = rng.choice(TRAINING_GAP_QUESTIONS).format(sentence=f"{before}____{after}")
    return Turn(question, match[0].rstrip(",.:"))


def ask_about(rng: Random, sentence: str) -> Turn | None:
    """Ask what is said about a name; the answer is the sentence."""
    matches = [m[0] for m in NAME.finditer(sentence) if m[0][0].isalpha()]
    if not matches or not 30 < len(sentence) < MAX_ANSWER_CHARS:
        return None
    askers = ("What is said about {}?", "What does the text say of {}?", "Tell me about {}.")
    return Turn(rng.choice(askers).format(rng.choice(matches)), sentence.strip())


Asker = Callable[[Random, str], Turn | None]
BY_FORM: tuple[Asker, ...] = (
    ask_year,
    ask_subject,
    ask_object,
    ask_count,
    ask_apposition,
    ask_called,
)
ALWAYS: tuple[Asker, ...] = (ask_gap, ask_quote, ask_about)


def ask_sentences(rng: Random, sentences: list[str], count: int) -> list[Turn]:
    """Ask up to `count` questions: of a form that suits the sentence, else gaps and quotations."""
    formed: list[Turn] = []
    others: list[Turn] = []
    for sentence in rng.sample(sentences, len(sentences)):
        if "\n" in sentence or len(sentence) > MAX_SENTENCE_CHARS:
            continue
        askers = rng.sample(BY_FORM, len(BY_FORM))
        if turn := next(filter(None, (asker(rng, sentence) for asker in askers)), None):
            formed.append(turn)
        elif len(others) < count and (turn := rng.choice(ALWAYS)(rng, sentence)):
            others.append(turn)
    turns = formed[: max(1, count * 2 // 3)]
    turns += others[: count - len(turns)]
    rng.shuffle(turns)
    return [turn for turn in turns if 0 < len(turn.answer) <= MAX_ANSWER_CHARS]
