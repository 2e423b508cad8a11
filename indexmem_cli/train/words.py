"""Words that the synthetic tasks draw from, and the making of names, codes and dates."""

from collections.abc import Callable
from random import Random


def words(text: str, separator: str | None = None) -> tuple[str, ...]:
    """Split a written list."""
    return tuple(text.split(separator))


FIRST_NAMES = words(
    "Ada Alice Amos Anna Arthur Beatrice Ben Bruno Carla Cecil Clara Daniel David Diana "
    "Edith Edward Ella Emil Esther Felix Fiona Frank George Grace Hannah Harold Helen Henry "
    "Hugo Ida Irene Isaac Jack James Jane Joan John Julia Karl Kate Laura Leo Lily Lucy "
    "Mabel Maria Mark Martha Mary Max Miriam Nora Oliver Oscar Otto Paul Peter Philip Ralph "
    "Rebecca Robert Rosa Ruth Samuel Sara Simon Sofia Stephen Susan Theodore Thomas Victor "
    "Viola Walter William Ahmed Chen Dmitri Fatima Giulia Ingrid Jorge Kofi Leila Mei "
    "Nikolai Olga Pablo Priya Rashid Sven Tariq Yuki Zara"
)
SURNAMES = words(
    "Adams Baker Bennett Blake Brooks Carter Clarke Cole Cooper Cross Dale Drake Ellis "
    "Fisher Ford Foster Fox Gray Green Hale Hart Hayes Hill Holt Hunt Kerr King Lane Lee "
    "Marsh Marlow Mason Miller Moore Nash Page Parker Pike Porter Price Reed Rowe Shaw Stone "
    "Swift Turner Vance Wade Walker Ward Webb West Wood Young"
)
TITLES = words(
    "Captain Doctor Mr. Mrs. Miss Lady Lord Sir General King Queen Professor Father Aunt"
)
CITIES = words(
    "Lisbon London Paris Rome Vienna Athens Cairo Damascus Boston Chicago Geneva Madrid "
    "Moscow Oslo Prague Venice Warsaw Dublin Delhi Bombay Canton Tokyo Lima Quebec Havana "
    "Naples Milan Berlin Hamburg Antwerp Marseilles Bristol Liverpool Glasgow Alexandria "
    "Babylon Carthage Corinth Sparta Syracuse Constantinople Jerusalem Baghdad Samarkand "
    "Egypt Persia Greece India China Spain France Sweden Norway Poland Brazil Mexico Chile "
    "Peru Sicily Crete Cyprus Scotland Ireland"
)
SYLLABLES = words(
    "al an ar bel bor bra cal cor dal den dor el fen fer gal gor hal har is kal ker lan lin "
    "lor mar mel min mor nal nor or pel ral ran ril ros sal sel sil tal tan tar tor ul val "
    "ver vin vor wen wil yar zan zor ka lo mi ne po ra so ti vu"
)
PLACE_ENDINGS = words("ton ford ham by mouth burg stad port dale wick field more a ia os um")
ADJECTIVES = words(
    "old new small large red blue green white black grey golden silver wooden iron stone "
    "broken north south east west upper lower hidden painted narrow round heavy light "
    "ancient royal"
)
OBJECTS = words(
    "lantern ledger mirror clock violin map compass sword ring crown letter diary chest "
    "basket telescope ladder hammer saddle blanket bottle candle carpet chair coin cup drum "
    "flute hat key knife lamp necklace painting pistol portrait statue table trunk umbrella "
    "vase whistle bible bicycle camera kettle notebook parcel scarf suitcase watch"
)
BUILDINGS = words(
    "gate mill office tower bridge house library chapel cellar warehouse station school "
    "palace temple garden harbour market castle theatre museum hospital laboratory hall barn "
    "lighthouse vault kitchen workshop archive monastery inn canal mine ship"
)
ROOMS = words(
    "the attic|the cellar|the kitchen|the stable|the garden shed|the library|the top drawer|"
    "a tin box|the church tower|the well|the old barn|the boat house|a hollow tree|the wine cellar|"
    "the back room|a locked desk|the hen house|the bell tower|the pantry|the hall cupboard",
    "|",
)
COLOURS = words(
    "red blue green yellow white black grey brown purple orange pink crimson scarlet violet"
)
ANIMALS = words(
    "dog cat horse parrot goat sheep cow pig goose donkey monkey camel falcon owl rabbit "
    "bear wolf fox tortoise elephant"
)
MATERIALS = words(
    "oak iron bronze marble silver gold ivory leather copper glass clay granite silk wool "
    "paper brick steel pine bone"
)
FOODS = words(
    "bread cheese rice fish soup mutton apples figs honey olives porridge cake beans oranges "
    "salt butter sugar tea coffee wine"
)
JOBS = words(
    "baker sailor doctor priest teacher carpenter smith painter farmer soldier lawyer "
    "merchant printer tailor shepherd clerk cook gardener engineer musician poet miller "
    "banker fisherman librarian surveyor governor mayor judge bishop treasurer director"
)
MONTHS = words(
    "January February March April May June July August September October November December"
)
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
COUNTS = words(
    "two three four five six seven eight nine ten eleven twelve fifteen twenty thirty forty "
    "fifty sixty seventy eighty ninety"
)
UNITS = words("miles pounds feet days hours years tons yards acres gallons metres kilograms")
COUNTED = words(
    "windows rooms pages ships soldiers horses children bells doors steps books wheels sheep "
    "islands pupils towers columns villages workers guns sailors trees coins"
)

RELATIONS = words(
    "brother sister cousin uncle neighbour partner enemy secretary tutor master servant friend "
    "rival guide assistant successor landlord grandfather nephew bride widow guardian"
)
EVENTS = words(
    "battle council fair fire flood election strike festival conference siege earthquake "
    "coronation revolt famine race plague trial exhibition synod peace"
)
PREPOSITIONS = words("in in in inside under behind near beside below outside at")
STEPS = words("walk march return journey climb row wander sail limp")
STAYS = words("stay remain camp rest land work wait play appear preach")
NEEDS = words("need feed employ house admit lose send cost produce attract")
SEASONS = words("Every summer|Each winter|Every week|Each month|Every year now|Each Sunday", "|")
PERIODS = words("a day|a week|a month|each summer|each winter|in May|at night|each morning", "|")


def make_word(rng: Random, num_syllables: int) -> str:
    """Invent a capitalised word."""
    return "".join(rng.choice(SYLLABLES) for _ in range(num_syllables)).capitalize()


def make_place(rng: Random) -> str:
    """Name a town or a country, known or invented."""
    if rng.random() < 0.4:
        return rng.choice(CITIES)
    return make_word(rng, rng.choice((1, 2))) + rng.choice(PLACE_ENDINGS)


def make_person(rng: Random) -> str:
    """Name a person: first name, surname, sometimes a title, often invented."""
    first = rng.choice(FIRST_NAMES) if rng.random() < 0.7 else make_word(rng, 2)
    last = rng.choice(SURNAMES) if rng.random() < 0.5 else make_word(rng, rng.choice((2, 3)))
    style = rng.random()
    if style < 0.2:
        return f"{rng.choice(TITLES)} {last}"
    if style < 0.3:
        return f"{rng.choice(TITLES)} {first} {last}"
    return first if style < 0.45 else f"{first} {last}"


def make_code(rng: Random) -> str:
    """Make a secret: digits, letters and digits, or an odd word."""
    style = rng.random()
    if style < 0.55:
        return "".join(rng.choice("0123456789") for _ in range(rng.randint(3, 7)))
    letters = "".join(rng.choice("ABCDEFGHJKLMNPRSTUVWXYZ") for _ in range(rng.randint(1, 3)))
    if style < 0.85:
        return f"{letters}-{rng.randint(10, 9999)}"
    return make_word(rng, 3).lower()


def make_year(rng: Random) -> str:
    """Draw a year, sometimes before Christ."""
    return f"{rng.randint(20, 900)} B.C." if rng.random() < 0.1 else str(rng.randint(900, 2090))


def make_date(rng: Random) -> str:
    """Draw a day of a year in one of three forms."""
    day, month, year = rng.randint(1, 28), rng.choice(MONTHS), rng.randint(1200, 2090)
    return rng.choice((f"{day} {month} {year}", f"{month} {day}, {year}", f"{day} {month}"))


def make_time(rng: Random) -> str:
    """Draw a time of day."""
    if rng.random() < 0.5:
        return f"{rng.randint(1, 12)}:{rng.randint(0, 59):02d}"
    return f"{rng.choice(('half past', 'a quarter to', 'ten past'))} {rng.choice(COUNTS[:10])}"


def make_number(rng: Random) -> str:
    """Draw a count, in digits or in words."""
    if rng.random() < 0.3:
        return rng.choice(COUNTS)
    return str(rng.choice((rng.randint(2, 99), rng.randint(100, 9999))))


def make_amount(rng: Random) -> str:
    """Draw a measured amount, or a price."""
    if rng.random() < 0.25:
        return f"${rng.randint(2, 9000)}"
    return f"{make_number(rng)} {rng.choice(UNITS)}"


def make_thing(rng: Random) -> str:
    """Name an object with an adjective or a material."""
    return f"{rng.choice(rng.choice((ADJECTIVES, COLOURS, MATERIALS)))} {rng.choice(OBJECTS)}"


def make_site(rng: Random) -> str:
    """Name a building by an adjective or by a town."""
    if rng.random() < 0.3:
        return f"{rng.choice(BUILDINGS)} of {make_place(rng)}"
    first = rng.choice(ADJECTIVES) if rng.random() < 0.7 else make_word(rng, 2)
    return f"{first} {rng.choice(BUILDINGS)}"


SLOTS: dict[str, Callable[[Random], str]] = {
    "person": make_person,
    "place": make_place,
    "code": make_code,
    "year": make_year,
    "date": make_date,
    "time": make_time,
    "number": make_number,
    "amount": make_amount,
    "thing": make_thing,
    "site": make_site,
    "room": lambda rng: rng.choice(ROOMS),
    "colour": lambda rng: rng.choice(COLOURS),
    "animal": lambda rng: rng.choice(ANIMALS),
    "material": lambda rng: rng.choice(MATERIALS),
    "food": lambda rng: rng.choice(FOODS),
    "job": lambda rng: rng.choice(JOBS),
    "day": lambda rng: rng.choice(DAYS),
    "counted": lambda rng: rng.choice(COUNTED),
    "relation": lambda rng: rng.choice(RELATIONS),
    "preposition": lambda rng: rng.choice(PREPOSITIONS),
    "step": lambda rng: rng.choice(STEPS),
    "stay": lambda rng: rng.choice(STAYS),
    "need": lambda rng: rng.choice(NEEDS),
    "season": lambda rng: rng.choice(SEASONS),
    "event": lambda rng: rng.choice(EVENTS),
    "period": lambda rng: rng.choice(PERIODS),
    "word": lambda rng: make_word(rng, rng.choice((2, 3))),
}
