"""From predicates to English: synonyms and templates, varied as people vary them."""

from __future__ import annotations

import numpy as np

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

    def _any(self, options: list[str]) -> str:
        return options[int(self.rng.integers(len(options)))]

    def name(self, attributes: dict[str, str], short: bool) -> str:
        """Noun phrase without article; a long one may put the texture behind the noun."""
        words, tail = [], ""
        if "size" in attributes:
            words.append(self._pick(WORDS[attributes["size"]]))
        if "texture" in attributes:
            if short or self.rng.random() < 0.5:
                words.append(self._pick(WORDS[attributes["texture"]], 0.8))
            else:
                tail = " " + self._any(TEXTURE_PHRASES[attributes["texture"]])
        if "colour" in attributes:
            words.append(self._pick(WORDS[attributes["colour"]], 0.8))
        words.append(self._pick(WORDS[attributes["shape"]], 0.8))
        return " ".join(words) + tail

    def landmark(self, landmark: dict) -> str:
        """Noun phrase of a landmark, with article."""
        if "decal" in landmark:
            return "the " + self._pick(DECAL_NOUNS[landmark["decal"]])
        return "the " + self.name(dict(landmark["predicates"]), short=True)

    def _relation(self, predicate: list) -> str:
        name, *landmarks = predicate
        phrase = self._any(RELATION_PHRASES[name])
        if name == "nearest_edge":
            return phrase.format(landmarks[0])
        return phrase.format(*(self.landmark(mark) for mark in landmarks))

    def sentence(self, predicates: list) -> str:
        """One sentence that says all predicates, attributes first."""
        attributes = {p[0]: p[1] for p in predicates if p[0] in ("shape", "colour", "texture", "size")}
        relations = [p for p in predicates if p[0] not in attributes]
        text = self.name(attributes, short=bool(relations) and self.rng.random() < 0.5)
        for index, relation in enumerate(relations):
            superlative = relation[0] in ("closest_to", "farthest_from", "nearest_edge")
            link = self._any(SUPERLATIVE_LINKS if superlative else LINKS)
            if index:
                text += f" and {self._relation(relation)}"
            else:
                text += f" {link}{self._relation(relation)}"
        if not relations:
            text += self._any([" on the wooden table", " that stands on the table", " among the things on the table"])
        return f"{self._any(OPENERS)} {text}."
