"""Texts of words without meaning, in a script's own way of writing; copies of them with changes."""

import random

LETTERS = {
    "English": ("bcdfglmnprstvw", "aeiou", " ", ". "),
    "Chinese": ("".join(map(chr, range(0x4E00, 0x5600))), "", "", "。"),
    "Thai": ("กขคงจชตทนบปพมยรลวสห", ["\u0e31", "\u0e34", "\u0e35", "\u0e37", "\u0e38", "\u0e48", "\u0e32"], "", " "),
    "Hindi": ("कखगचजटडतदनपबमयरलवसह", ["\u093e", "\u093f", "\u0940", "\u0941", "\u0947", "\u094b", "\u094d"], " ", "। "),
}
"""Consonants, vowels, and what stands between words and sentences."""


def sentences(script, count, seed):
    """Different sentences of 12 words, in a script's own way of writing."""
    consonants, vowels, blank, end = LETTERS[script]
    draw = random.Random(0)
    words = [
        "".join(draw.choice(consonants) + (draw.choice(vowels) if vowels else "") for _ in range(draw.randint(1, 4)))
        for _ in range(1000)
    ]
    draw = random.Random(seed)
    return [blank.join(draw.choices(words, k=12)) + end for _ in range(count)]


def changed(text, script, seed, rate=0.05):
    """The text with another letter of its script at each place that a draw hits."""
    draw = random.Random(seed)
    letters = LETTERS[script][0]
    return "".join(draw.choice(letters) if draw.random() < rate else character for character in text)
