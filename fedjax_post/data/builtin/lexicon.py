"""The words of the built-in tasks, and the phrases in which clients ask.

The built-in world is deliberately small: five kinds of things, adjectives in
opposite pairs and the numbers 0 to 99. A model that trains within minutes on a
laptop can learn all of it, so that the effect of a federation is visible at once.
"""

# kind -> "singular plural" of twelve things
_NOUNS = {
    "animal": "cat cats dog dogs cow cows pig pigs hen hens duck ducks goat goats lion lions "
    "mouse mice frog frogs goose geese wolf wolves",
    "food": "apple apples pear pears plum plums bean beans carrot carrots onion onions "
    "lemon lemons melon melons pie pies cake cakes egg eggs cherry cherries",
    "tool": "hammer hammers saw saws drill drills axe axes rake rakes spade spades nail nails "
    "screw screws brush brushes knife knives needle needles ladder ladders",
    "garment": "hat hats coat coats shirt shirts sock socks shoe shoes boot boots glove gloves "
    "scarf scarves belt belts skirt skirts cap caps dress dresses",
    "vehicle": "car cars bus buses train trains boat boats ship ships plane planes truck trucks "
    "van vans bike bikes sled sleds tram trams taxi taxis",
}

_OPPOSITES = (
    "hot cold wet dry hard soft fast slow rich poor old young tall short dark bright "
    "full empty clean dirty early late near far thick thin wide narrow loud quiet happy sad "
    "strong weak sweet sour open shut left right day night north south true false alive dead "
    "sharp blunt deep shallow brave timid cheap costly smooth rough awake asleep "
    "simple complex ancient modern public private rare common"
)


def _pairs(text: str) -> list[tuple[str, str]]:
    words = text.split()
    return list(zip(words[::2], words[1::2], strict=True))


KINDS = tuple(_NOUNS)
KIND_PLURALS = {"animal": "animals", "food": "foods", "tool": "tools"} | {
    "garment": "garments",
    "vehicle": "vehicles",
}
PLURALS = {one: many for text in _NOUNS.values() for one, many in _pairs(text)}
KIND_OF = {one: kind for kind, text in _NOUNS.items() for one, _ in _pairs(text)}
OPPOSITES = {a: b for pair in _pairs(_OPPOSITES) for a, b in (pair, pair[::-1])}
NOUNS = tuple(PLURALS)
ADJECTIVES = tuple(OPPOSITES)
WORDS = NOUNS + ADJECTIVES
NUMBERS = tuple(str(number) for number in range(100))
OPERANDS = WORDS + tuple(PLURALS.values()) + NUMBERS

# dialect -> task -> the phrase; {x} is the list, {a} and {b} are the arguments of the task
PHRASES = {
    "plain": {
        "reverse": "reverse the order of these words: {x}",
        "swap": "swap the first and the last word: {x}",
        "double": "write each word twice: {x}",
        "replace": "replace {a} by {b}: {x}",
        "opposite": "give the opposite of each word: {x}",
        "plural": "give the plural of each word: {x}",
        "kind": "name the kind of each word: {x}",
        "keep": "keep only the {a}: {x}",
        "sort": "sort these numbers: {x}",
        "next": "add one to each number: {x}",
    },
    "polite": {
        "reverse": "could you please turn this list around: {x}",
        "swap": "could you please exchange the two ends of this list: {x}",
        "double": "could you please repeat every word: {x}",
        "replace": "could you please put {b} in place of {a}: {x}",
        "opposite": "could you please tell me the contrary of every word: {x}",
        "plural": "could you please say these for more than one: {x}",
        "kind": "could you please tell me the group of every word: {x}",
        "keep": "could you please pick the {a} from this list: {x}",
        "sort": "could you please arrange these numbers: {x}",
        "next": "could you please say what comes after each number: {x}",
    },
    "terse": {
        "reverse": "backwards: {x}",
        "swap": "ends swapped: {x}",
        "double": "doubled: {x}",
        "replace": "{a} becomes {b}: {x}",
        "opposite": "opposites: {x}",
        "plural": "plurals: {x}",
        "kind": "kinds: {x}",
        "keep": "only {a}: {x}",
        "sort": "sorted: {x}",
        "next": "plus one: {x}",
    },
    "teacher": {
        "reverse": "exercise: write the list from last to first. {x}",
        "swap": "exercise: let the first and the last word trade places. {x}",
        "double": "exercise: say each word two times. {x}",
        "replace": "exercise: change {a} into {b}. {x}",
        "opposite": "exercise: find the antonyms. {x}",
        "plural": "exercise: there are many now. {x}",
        "kind": "exercise: label each word with its class. {x}",
        "keep": "exercise: which of these are {a}? {x}",
        "sort": "exercise: begin with the lowest number. {x}",
        "next": "exercise: count one step further. {x}",
    },
    "chatty": {
        "reverse": "hey, i have {x} and need it flipped, ok?",
        "swap": "hey, i have {x} and need the outer two switched, ok?",
        "double": "hey, i have {x} and need two of each, ok?",
        "replace": "hey, i have {x} and need {b} instead of {a}, ok?",
        "opposite": "hey, i have {x} and need the other extreme, ok?",
        "plural": "hey, i have {x} and need lots of them, ok?",
        "kind": "hey, i have {x} and need the types, ok?",
        "keep": "hey, i have {x} and need just the {a}, ok?",
        "sort": "hey, i have {x} and need them in rising order, ok?",
        "next": "hey, i have {x} and need the next ones, ok?",
    },
    "story": {
        "reverse": "{x}. read it from the end to the start.",
        "swap": "{x}. the ends change seats, the middle stays.",
        "double": "{x}. an echo follows each word.",
        "replace": "{x}. {a} leaves and {b} takes its seat.",
        "opposite": "{x}. now all is the other way.",
        "plural": "{x}. then more of each came.",
        "kind": "{x}. what sort of thing is each one?",
        "keep": "{x}. all but the {a} go away.",
        "sort": "{x}. the little ones stand in front.",
        "next": "{x}. each one grows by one.",
    },
}
DIALECTS = tuple(PHRASES)

# the formal notation of the pre-training corpus, which occurs in no instruction
OPERATORS = {
    "reverse": "rev",
    "swap": "swp",
    "double": "dup",
    "replace": "sub",
    "opposite": "opp",
    "plural": "plu",
    "kind": "knd",
    "keep": "sel",
    "sort": "srt",
    "next": "nxt",
}
