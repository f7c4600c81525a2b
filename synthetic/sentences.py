"""Five referring sentences an object, each checked to refer to it alone.

- Every object gets two characteristic landmarks (something flat on the table, an edge, or an object that attributes
  single out), flat and near ones first; a look-alike gets others. One sentence names the nearest other object instead.
- At least two sentences use only what look-alikes share (shape, colour, perhaps texture) and need their relation; own
  sentences add the texture or size that tells the look-alike apart.
- One of the five, drawn by the seed, is the test sentence: a new combination of attributes (and landmarks, where it
  needs them) of the object's training sentences, in words of the scene's training sentences.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

from synthetic.relations import ATTRIBUTES, DIRECTIONS, EDGES, SUPERLATIVES, Relations

SENTENCES = 5  # an object

# Groups of words for the same thing; the first is the name in predicates and the usual word.
SYNONYMS = """
mug, cup, coffee mug; ball, sphere, round ball; cube, block, box; pyramid, pointed pyramid; can, tin, cylinder;
cone, pointed cone; ring, donut, doughnut shaped ring; bowl, dish; bottle, flask; vase, flower vase; goblet, chalice;
pawn, chess pawn, chess piece; teapot, tea pot, kettle; mushroom, toadstool;
red, crimson; blue, cobalt blue; green, emerald green; yellow, golden yellow; orange, tangerine; purple, violet;
pink, rose pink; turquoise, teal; white, cream white; black, charcoal black; small, little; large, big;
plain, single coloured; striped, banded; spotted, dotted; checkered, chequered; marbled, veined; wooden, wood grained;
metallic, shiny metal
"""
WORDS = {words[0]: words for words in (group.strip().split(", ") for group in SYNONYMS.split(";"))}
TEXTURE_PHRASES = {
    "plain": ["without any pattern on it", "with a plain even surface"],
    "striped": ["with stripes all around it", "with a striped pattern"],
    "spotted": ["with dots all over it", "with a spotted pattern"],
    "checkered": ["with a checkered pattern", "with squares like a chess board"],
    "marbled": ["with veins like marble", "that looks like marble"],
    "wooden": ["that is made of wood", "with a visible wood grain"],
    "metallic": ["that is made of shiny metal", "with a metallic shine"],
}
DECAL_NOUNS = {
    "napkin": ["linen napkin", "napkin with the red border"],
    "letter": ["handwritten letter", "sheet of paper with writing"],
    "mat": ["woven place mat", "grey place mat"],
    "tile": ["ceramic tile", "tile with the blue flowers"],
}
RELATION_PHRASES = {
    "left_of": ["to the left of {}", "on the left side of {}", "left of {}"],
    "right_of": ["to the right of {}", "on the right side of {}", "right of {}"],
    "in_front_of": ["in front of {}", "nearer to the viewer than {}"],
    "behind": ["behind {}", "further back than {}"],
    "next_to": ["next to {}", "beside {}", "close to {}"],
    "on": ["on {}", "on top of {}"],
    "closest_to": ["closest to {}", "nearest to {}"],
    "farthest_from": ["farthest from {}", "furthest away from {}"],
    "between": ["between {} and {}", "in the gap between {} and {}"],
    "nearest_edge": ["nearest to the {} edge of the table", "closest to the {} edge of the table"],
}
OPENERS = ["The", "The", "The", "Find the", "Look for the", "I mean the", "Point at the"]
ENDINGS = [" on the wooden table", " that stands on the table", " among the things on the table"]
LINKS = ["", "that is ", "which is ", "standing ", "sitting ", "that stands "]
SUPERLATIVE_LINKS = ["that is ", "which is ", "standing ", "that stands "]


class Writer:
    """Turns predicates into sentences; synonyms are drawn from `rng`."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng

    def _pick(self, options: list[str], first: float = 0.75) -> str:
        """The usual word with probability `first`, else one of the others."""
        if len(options) == 1 or self.rng.random() < first:
            return options[0]
        return options[int(self.rng.integers(1, len(options)))]

    def name(self, attributes: dict[str, str], short: bool) -> str:
        """Noun phrase without article; a long one may put the texture behind the noun."""
        words, tail = [], ""
        if "size" in attributes:
            words.append(self._pick(WORDS[attributes["size"]]))
        if "texture" in attributes:
            if short or self.rng.random() < 0.5:
                words.append(self._pick(WORDS[attributes["texture"]], 0.8))
            else:
                tail = " " + self.rng.choice(TEXTURE_PHRASES[attributes["texture"]])
        words += [self._pick(WORDS[attributes[key]], 0.8) for key in ("colour", "shape") if key in attributes]
        return " ".join(words) + tail

    def landmark(self, landmark: dict) -> str:
        """Noun phrase of a landmark, with article."""
        if "decal" in landmark:
            return "the " + self._pick(DECAL_NOUNS[landmark["decal"]])
        return "the " + self.name(dict(landmark["predicates"]), short=True)

    def _relation(self, predicate: list) -> str:
        name, *landmarks = predicate
        phrase = self.rng.choice(RELATION_PHRASES[name])
        return phrase.format(*(mark if isinstance(mark, str) else self.landmark(mark) for mark in landmarks))

    def sentence(self, predicates: list) -> str:
        """One sentence that says all predicates, attributes first."""
        attributes = {p[0]: p[1] for p in predicates if p[0] in ATTRIBUTES}
        relations = [p for p in predicates if p[0] not in attributes]
        text = self.name(attributes, short=bool(relations) and self.rng.random() < 0.5)
        for index, relation in enumerate(relations):
            link = self.rng.choice(SUPERLATIVE_LINKS if relation[0] in SUPERLATIVES else LINKS)
            text += f" {'and ' if index else link}{self._relation(relation)}"
        if not relations:
            text += self.rng.choice(ENDINGS)
        return f"{self.rng.choice(OPENERS)} {text}."


@dataclass
class Referring:
    """One sentence of one object."""

    item: int
    predicates: list
    needs_relation: bool
    text: str = ""
    split: str = "train"


@dataclass
class Facts:
    """Attributes and relations of one object that sentences can use."""

    item: int
    shared: list  # attributes it shares with its look-alikes
    own: list  # attributes that tell it from them
    distinctive: dict[str, list] = field(default_factory=dict)  # landmark -> relations that exclude the look-alikes
    true: dict[str, list] = field(default_factory=dict)  # landmark -> relations that merely hold


def landmark_key(predicate: list) -> str:
    """Which landmark a relation names: "item 3", "decal napkin", "edge left" or both of a `between`."""
    if predicate[0] == "nearest_edge":
        return f"edge {predicate[1]}"
    return " + ".join(f"item {m['item']}" if "item" in m else f"decal {m['decal']}" for m in predicate[1:])


def look_alikes(relations: Relations, item: int) -> list[int]:
    """Other items of the same shape and colour."""
    own = relations.world.items[item]
    return [i for i in relations.candidates([["shape", own.shape], ["colour", own.colour]]) if i != item]


def _attributes(relations: Relations, item: int) -> tuple[list, list]:
    """(shared, own) attribute predicates of an item."""
    own = relations.world.items[item]
    others = [relations.world.items[i] for i in look_alikes(relations, item)]
    shared = [["shape", own.shape], ["colour", own.colour]]
    differing = []
    for attribute in ("texture", "size"):
        value = getattr(own, attribute)
        if all(getattr(other, attribute) == value for other in others):
            if attribute == "texture" and value != "plain":
                shared.append([attribute, value])
        elif not (attribute == "size" and value == "medium"):
            differing.append([attribute, value])
    return shared, differing


def _landmarks(relations: Relations) -> list[dict]:
    """Landmarks that a noun phrase singles out."""
    attributes = [_attributes(relations, item) for item in range(len(relations.world.items))]
    looks = [shared[:2] + own for shared, own in attributes]
    found: list[dict] = [{"item": i, "predicates": p} for i, p in enumerate(looks) if relations.candidates(p) == [i]]
    return found + [{"decal": decal.kind} for decal in relations.world.decals]


def collect_facts(relations: Relations, item: int, landmarks: list[dict]) -> Facts:
    """Collect all relations of an item, sorted by landmark."""
    facts = Facts(item, *_attributes(relations, item))
    look = facts.shared[:2]
    rivals = relations.candidates(look)
    for landmark in landmarks:
        if landmark.get("item") in rivals:
            continue
        for name in (*DIRECTIONS, "next_to", "on", "closest_to", "farthest_from"):
            predicate = [name, landmark]
            if (name == "on" and "item" in landmark) or relations.answer(item, predicate, rivals) != 1:
                continue
            facts.true.setdefault(landmark_key(predicate), []).append(predicate)
            if relations.singles_out([*look, predicate], item):
                facts.distinctive.setdefault(landmark_key(predicate), []).append(predicate)
    for edge in EDGES:
        predicate = ["nearest_edge", edge]
        if relations.singles_out([*look, predicate], item):
            facts.distinctive[landmark_key(predicate)] = facts.true[landmark_key(predicate)] = [predicate]
    return facts


def _distance(relations: Relations, item: int, key: str) -> float:
    """Metres from an item to a landmark; a table edge counts as a far one."""
    if key.startswith("edge"):
        return 0.45
    kind, name = key.split(" ", 1)
    place = int(name) if kind == "item" else relations.decal_index[name]
    return float(np.linalg.norm(relations.place[item] - relations.place[place]))


def choose_landmarks(relations: Relations, described: list[Facts]) -> list[list[str]] | None:
    """Choose two characteristic landmarks for every item; None if one has fewer than two."""
    chosen: list[list[str]] = [[] for _ in described]

    def cost(key: str, facts: Facts) -> float:
        near = [p for p in facts.distinctive[key] if p[0] != "farthest_from"]
        mutual = key.startswith("item") and f"item {facts.item}" in chosen[int(key.split()[1])]
        taken = any(key in chosen[rival] for rival in look_alikes(relations, facts.item))
        total = _distance(relations, facts.item, key) - 0.03 * len(near) + 0.5 * mutual + 0.6 * taken
        return total + (0 if near else 0.5) - (0.3 if key.startswith("decal") else 0)

    for _ in range(2):
        for facts in described:
            costs = [(cost(key, facts), key) for key in facts.distinctive if key not in chosen[facts.item]]
            if not costs:
                return None
            chosen[facts.item].append(min(costs)[1])
    return chosen


def _choose(rng: np.random.Generator, options: list, used: list) -> list:
    """An option not yet used if there is one; `farthest_from` only for want of others."""
    fresh = [o for o in options if o not in used] or options
    fresh = [o for o in fresh if o[0] != "farthest_from"] or fresh
    return fresh[int(rng.integers(len(fresh)))]


def _choose_predicates(
    relations: Relations, facts: Facts, keys: list[str], rng: np.random.Generator
) -> list[list] | None:
    """Choose the predicates of the five sentences of an item, all different; None if there is too little to say.

    Two use shared attributes only and need their relations, two are its own attributes with a landmark, one its own
    attributes with the nearest other object.
    """
    first, second = keys
    look = facts.shared[:2]
    # Superlatives compare with look-alikes, of which own attributes leave none.
    plain = {key: [p for p in facts.true[key] if p[0] not in SUPERLATIVES] for key in facts.true}
    objects = [p for key in plain if key.startswith("item") for p in plain[key]]
    if not plain[first] or not objects:
        return None
    nearest = min(objects, key=lambda p: (_distance(relations, facts.item, landmark_key(p)), str(p)))
    own_first = _choose(rng, plain[first], [nearest])
    chosen = [
        [*facts.shared, _choose(rng, facts.distinctive[first], [])],
        [*look, *_both(relations, facts, first, second, rng)],
        [*look, *facts.own, own_first],
        [*look, *facts.own, _choose(rng, plain[second] or plain[first], [own_first, nearest])],
        [*look, *facts.own, nearest],
    ]
    distinct = len({str(predicates) for predicates in chosen}) == SENTENCES
    return chosen if distinct and all(relations.singles_out(p, facts.item) for p in chosen) else None


def _both(relations: Relations, facts: Facts, first: str, second: str, rng: np.random.Generator) -> list:
    """Relations to both landmarks: `between` where it holds, else one to each."""
    between = ["between", *(facts.true[key][0][1] for key in (first, second))]
    is_possible = all(isinstance(mark, dict) for mark in between[1:])
    if is_possible and relations.singles_out([*facts.shared[:2], between], facts.item):
        return [between]
    simple = (*DIRECTIONS, "next_to", "on")
    strong = [p for p in facts.distinctive[first] if p[0] in simple] or facts.distinctive[first]
    weak = [p for p in facts.true[second] if p[0] in simple]
    one = _choose(rng, strong, [])
    return [one, _choose(rng, facts.distinctive[second] if one[0] == "nearest_edge" or not weak else weak, [])]


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))


def _answerable(test: Referring, train: list[Referring]) -> bool:
    """Whether the training sentences of the object name all attributes of the test sentence, and, where these do not
    single it out, all its landmarks."""
    said = [p for sentence in train for p in sentence.predicates]
    if not all(p in said for p in test.predicates if p[0] in ATTRIBUTES):
        return False
    marks = {part for p in said if p[0] not in ATTRIBUTES for part in landmark_key(p).split(" + ")}
    related = [p for p in test.predicates if p[0] not in ATTRIBUTES]
    return not test.needs_relation or all(set(landmark_key(p).split(" + ")) <= marks for p in related)


def compose(relations: Relations, seed: int) -> list[list[Referring]] | None:
    """Write five sentences for every item, one of them for the test; None if this table top does not offer enough.

    Every sentence is true in all views by a margin and refers to one item only.
    """
    landmarks = _landmarks(relations)
    described = [collect_facts(relations, item, landmarks) for item in range(len(relations.world.items))]
    chosen = choose_landmarks(relations, described)
    if chosen is None:
        return None
    rng = np.random.default_rng([seed, 41])
    result: list[list[Referring]] = []
    for facts, keys in zip(described, chosen, strict=True):
        attempts = (_choose_predicates(relations, facts, keys, rng) for _ in range(20))
        predicates = next(filter(None, attempts), None)
        if predicates is None:
            return None
        sentences = [Referring(facts.item, p, len(relations.candidates(p)) > 1) for p in predicates]
        shuffled = (sentences[i] for i in rng.permutation(SENTENCES))
        test = next((s for s in shuffled if _answerable(s, [o for o in sentences if o is not s])), None)
        if test is None:
            return None
        test.split = "test"
        result.append(sentences)
    return result if _write(result, Writer(rng)) else None


def _write(sentences: list[list[Referring]], writer: Writer) -> bool:
    """Fill in the texts, all different; False if the words of the training sentences do not suffice for the test."""
    everything = [sentence for group in sentences for sentence in group]
    texts, vocabulary = set[str](), set[str]()
    for sentence in sorted(everything, key=lambda s: s.split == "test"):  # training sentences set the vocabulary
        drafts = (writer.sentence(sentence.predicates) for _ in range(300))
        fresh = (draft for draft in drafts if draft not in texts)
        text = next((draft for draft in fresh if sentence.split == "train" or _words(draft) <= vocabulary), None)
        if text is None:
            return False
        sentence.text = text
        texts.add(text)
        if sentence.split == "train":
            vocabulary |= _words(text)
    return True
