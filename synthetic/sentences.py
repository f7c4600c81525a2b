"""Five referring sentences an object, each checked to refer to it alone.

How they are chosen, the same for all seeds:
- Every object gets two characteristic landmarks (something flat on the table, an edge, or another object that
  attributes single out), flat and near ones first, and names them in most of its sentences, as people do. A look-alike
  gets other landmarks. One sentence names the nearest other object instead.
- Shared sentences use only what the look-alikes share (shape, colour, perhaps texture) and need their relation; own
  sentences add the texture or size that tells the look-alike apart. At least two of the five are shared ones.
- One of the five, drawn by the seed among all of them, is the test sentence. It is a new combination, not a new
  vocabulary: its attributes occur in the object's training sentences, so do its landmarks where it needs them, and
  its words occur in the scene's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

from synthetic.relations import ATTRIBUTES, DIRECTIONS, EDGES, SUPERLATIVES, Relations
from synthetic.wording import Writer

SENTENCES = 5  # an object


@dataclass
class Referring:
    """One sentence of one object."""

    item: int
    predicates: list
    needs_relation: bool
    text: str = ""
    split: str = "train"


@dataclass
class Plan:
    """What there is to say about one object."""

    item: int
    shared: list  # attributes it shares with its look-alikes
    own: list  # attributes that tell it from them
    facts: dict[str, list] = field(default_factory=dict)  # landmark key -> relations that exclude the look-alikes
    true: dict[str, list] = field(default_factory=dict)  # landmark key -> relations that merely hold


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
    found = []
    for item in range(len(relations.world.items)):
        shared, own = _attributes(relations, item)
        phrase = shared[:2] + own
        if relations.candidates(phrase) == [item]:
            found.append({"item": item, "predicates": phrase})
    return found + [{"decal": decal.kind} for decal in relations.world.decals]


def plan(relations: Relations, item: int, landmarks: list[dict]) -> Plan:
    """All relations of an item, sorted by landmark."""
    shared, own = _attributes(relations, item)
    result = Plan(item, shared, own)
    rivals = relations.candidates(shared[:2])
    names = (*DIRECTIONS, "next_to", "on", "closest_to", "farthest_from")
    for landmark in landmarks:
        if landmark.get("item") in rivals:
            continue
        for name in names:
            if name == "on" and "item" in landmark:
                continue
            predicate = [name, landmark]
            if relations.answer(item, predicate, rivals) == 1:
                key = landmark_key(predicate)
                result.true.setdefault(key, []).append(predicate)
                if relations.singles_out([*shared[:2], predicate], item):
                    result.facts.setdefault(key, []).append(predicate)
    for edge in EDGES:
        predicate = ["nearest_edge", edge]
        if relations.singles_out([*shared[:2], predicate], item):
            result.facts[landmark_key(predicate)] = result.true[landmark_key(predicate)] = [predicate]
    return result


def _distance(relations: Relations, item: int, key: str) -> float:
    """Metres from an item to a landmark; a table edge counts as a far one."""
    if key.startswith("edge"):
        return 0.45
    kind, name = key.split(" ", 1)
    place = int(name) if kind == "item" else relations.decal_index[name]
    return float(np.linalg.norm(relations.place[item] - relations.place[place]))


def choose_landmarks(relations: Relations, plans: list[Plan]) -> list[list[str]] | None:
    """Two characteristic landmarks for every item, or None if one has not got two."""
    chosen: list[list[str]] = [[] for _ in plans]
    for _ in range(2):
        for item, told in enumerate(plans):
            rivals = look_alikes(relations, item)

            def cost(key: str, item=item, told=told, rivals=rivals) -> float:
                near = [p for p in told.facts[key] if p[0] != "farthest_from"]
                mutual = key.startswith("item") and f"item {item}" in chosen[int(key.split()[1])]
                taken = any(key in chosen[rival] for rival in rivals)
                total = _distance(relations, item, key) - 0.03 * len(near) + 0.5 * mutual + 0.6 * taken
                return total + (0 if near else 0.5) - (0.3 if key.startswith("decal") else 0)

            keys = sorted((key for key in told.facts if key not in chosen[item]), key=lambda k: (cost(k), k))
            if not keys:
                return None
            chosen[item].append(keys[0])
    return chosen


def _choose(rng: np.random.Generator, options: list, used: list) -> list:
    """An option not yet used if there is one; `farthest_from` only for want of others."""
    fresh = [o for o in options if o not in used] or options
    fresh = [o for o in fresh if o[0] != "farthest_from"] or fresh
    return fresh[int(rng.integers(len(fresh)))]


def _programs(relations: Relations, told: Plan, keys: list[str], rng: np.random.Generator) -> list[list] | None:
    """Predicates of the five sentences of an item, all different; None if there is too little to say.

    Two use shared attributes only and need their relations, two are its own attributes with a landmark, one its own
    attributes with the nearest other object.
    """
    item, first, second = told.item, *keys
    shape, colour = told.shared[:2]
    # Superlatives compare with look-alikes, of which own attributes leave none.
    plain = {key: [p for p in told.true[key] if p[0] not in SUPERLATIVES] for key in told.true}
    objects = [p for key in plain if key.startswith("item") for p in plain[key]]
    if not plain[first] or not objects:
        return None
    nearest = min(objects, key=lambda p: (_distance(relations, item, landmark_key(p)), str(p)))
    own_first = _choose(rng, plain[first], [nearest])
    programs = [
        [*told.shared, _choose(rng, told.facts[first], [])],
        [shape, colour, *_both(relations, told, first, second, rng)],
        [shape, colour, *told.own, own_first],
        [shape, colour, *told.own, _choose(rng, plain[second] or plain[first], [own_first, nearest])],
        [shape, colour, *told.own, nearest],
    ]
    distinct = len({str(p) for p in programs}) == SENTENCES
    if not distinct or not all(relations.singles_out(p, item) for p in programs):
        return None
    return programs


def _both(relations: Relations, told: Plan, first: str, second: str, rng: np.random.Generator) -> list:
    """Relations to both landmarks: `between` where it holds, else one to each."""
    marks = [told.true[key][0][1] for key in (first, second)]
    if all(isinstance(mark, dict) for mark in marks):
        between = ["between", *marks]
        if relations.singles_out([*told.shared[:2], between], told.item):
            return [between]
    one = _choose(
        rng, [p for p in told.facts[first] if p[0] in (*DIRECTIONS, "next_to", "on")] or told.facts[first], []
    )
    simple = [p for p in told.true[second] if p[0] in (*DIRECTIONS, "next_to", "on")]
    if one[0] == "nearest_edge" or not simple:
        return [one, _choose(rng, told.facts[second], [])]
    return [one, _choose(rng, simple, [])]


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))


def _answerable(relations: Relations, test: Referring, train: list[Referring]) -> bool:
    """Whether the training sentences of the object name all attributes of the test sentence, and, where these do not
    single it out, all its landmarks."""
    said = [p for sentence in train for p in sentence.predicates]
    attributes = {tuple(p) for p in said if p[0] in ATTRIBUTES}
    if not all(tuple(p) in attributes for p in test.predicates if p[0] in ATTRIBUTES):
        return False
    marks = {part for p in said if p[0] not in ATTRIBUTES for part in landmark_key(p).split(" + ")}
    related = [p for p in test.predicates if p[0] not in ATTRIBUTES]
    return not test.needs_relation or all(set(landmark_key(p).split(" + ")) <= marks for p in related)


def compose(relations: Relations, seed: int) -> list[list[Referring]] | None:
    """Five sentences for every item, one of them for the test; None if this table top does not offer enough.

    Every sentence is true in all views by a margin and refers to one item only.
    """
    landmarks = _landmarks(relations)
    plans = [plan(relations, item, landmarks) for item in range(len(relations.world.items))]
    chosen = choose_landmarks(relations, plans)
    if chosen is None:
        return None
    rng = np.random.default_rng([seed, 41])
    writer = Writer(rng)
    result: list[list[Referring]] = []
    for told, keys in zip(plans, chosen, strict=True):
        programs = next((p for p in (_programs(relations, told, keys, rng) for _ in range(20)) if p), None)
        if programs is None:
            return None
        sentences = [Referring(told.item, p, len(relations.candidates(p)) > 1) for p in programs]
        for index in rng.permutation(SENTENCES):
            if _answerable(relations, sentences[index], [s for i, s in enumerate(sentences) if i != index]):
                sentences[index].split = "test"
                break
        else:
            return None
        result.append(sentences)
    everything = [sentence for sentences in result for sentence in sentences]
    said: set[str] = set()
    for sentence in sorted(everything, key=lambda s: s.split == "test"):  # training sentences set the vocabulary
        vocabulary = set().union(*(_words(s.text) for s in everything if s.split == "train"))
        for _ in range(300):
            text = writer.sentence(sentence.predicates)
            if text not in said and (sentence.split == "train" or _words(text) <= vocabulary):
                break
        else:
            return None
        sentence.text = text
        said.add(text)
    return result
