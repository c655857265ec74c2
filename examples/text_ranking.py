"""Splits text into words and sentences and ranks passages by BM25.

The document server ranks documents with it and the stand-in model ranks
sentences. Pure functions of text: nothing here reads files, the network or a
clock, so that equal input gives equal output in every process.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

# The usual values of the two BM25 constants (Robertson and Zaragoza, 2009).
TERM_SATURATION = 1.2
LENGTH_WEIGHT = 0.75

_STOP_WORDS_TEXT = (
    "a about above after all also an and any are as at be because been before but by can change could did do does "
    "each find for from found give given had has have he help her his how if in into is it its just many more "
    "most no nor not of on one only or other our out over same she so some such than that the their them then "
    "there these they this those through to too under up use used using very was way we were what when where "
    "which while who whose why will with would you your "
)
STOP_WORDS = frozenset(_STOP_WORDS_TEXT.split())

_WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")
_CLOSING = (".", "!", "?", '"')
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'])")


def stem(word: str) -> str:
    """Cut a plural ending: enough for "ports" to find "port", no more."""
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def keywords(text: str) -> list[str]:
    """The words that a text is about, in order, repeated as they occur."""
    return [stem(word) for word in _WORD.findall(text.lower()) if word not in STOP_WORDS and len(word) > 2]


def sentences(text: str) -> list[str]:
    """The sentences of a text; a blank line also ends one, and a heading is none."""
    found: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        flowing = " ".join(paragraph.split())
        found += [part for part in _SENTENCE_END.split(flowing) if part[-1:] in _CLOSING]
    return found


def scores(query: str, passages: Sequence[str], *, length_weight: float = LENGTH_WEIGHT) -> list[float]:
    """The BM25 score of each passage; 0.0 where no word of the query occurs."""
    counted = [Counter(keywords(passage)) for passage in passages]
    lengths = [sum(count.values()) for count in counted]
    average = sum(lengths) / len(lengths) if lengths else 0.0
    wanted = list(dict.fromkeys(keywords(query)))
    holding = {word: sum(word in count for count in counted) for word in wanted}
    result = []
    for count, length in zip(counted, lengths, strict=True):
        total = 0.0
        for word in wanted:
            if not count[word]:
                continue
            rarity = math.log(1 + (len(passages) - holding[word] + 0.5) / (holding[word] + 0.5))
            damping = TERM_SATURATION * (1 - length_weight + length_weight * length / average)
            total += rarity * count[word] * (TERM_SATURATION + 1) / (count[word] + damping)
        result.append(total)
    return result


def best(query: str, passages: Sequence[str], limit: int) -> list[int]:
    """Indices of the best passages that match at all, best first; ties keep their order."""
    rated = scores(query, passages)
    order = sorted(range(len(passages)), key=lambda index: (-rated[index], index))
    return [index for index in order if rated[index] > 0][:limit]
