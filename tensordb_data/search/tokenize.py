"""Split texts, names and tags into words, in the same way for the index and for a search."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

MOST = 128  # words in one entry
_LONGEST = 64  # characters of a word
_WORD = re.compile(r"[^\W_]+")
_DENSE = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1100-\u11ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff]+"
)
"""A run of characters of scripts that put no spaces between words: Thai, Lao, Burmese, Khmer, Hangul, kana, Han."""
_SHORTEST = 2  # characters that may stand for the beginning of a word


def words(*texts: str) -> list[str]:
    """The different words of some texts, in order.

    A word is a run of letters and digits, without regard to case, accents and width: `"ResNet-50_Café"` is `resnet`,
    `50` and `cafe`. A piece that has none, an emoji or `++`, is a word as it stands. No word is left out for being
    frequent, and none is reduced to a stem.
    """
    found: dict[str, None] = {}
    for text in texts:
        for piece in _folded(text).split():
            inside = _WORD.findall(piece) or [piece]
            found.update((word[:_LONGEST], None) for word in inside)
    return list(found)


def index_words(*texts: str) -> list[str]:
    """The words of some texts, and then what a search finds within them.

    That are the ends of a word from where a capital or a digit begins a part of it, of two characters or more:
    `"BestModelB0"` has `modelb0` and `b0`. With the beginnings of these, a search finds `model`. Of a run of a script
    that puts no spaces between words, it is each two neighbours, and the last character: `"模型训练"` has `模型`,
    `型训`, `训练` and `练`.
    """
    found = dict.fromkeys(words(*texts))
    for text in texts:
        found.update(dict.fromkeys(_ends(text)))
        for run in _dense(text):
            found.update(dict.fromkeys((*_pairs(run), run[-1])))
    return list(found)


def search_words(text: str) -> list[str]:
    """The words that a search looks for.

    Of a run of a script without spaces, each two neighbours are looked for, besides the word as it is.
    """
    found = dict.fromkeys(words(text))
    for run in _dense(text):
        found.update(dict.fromkeys(_pairs(run)))
    return list(found)


def may_begin(word: str) -> bool:
    """Whether a search takes it for the beginning of a word, too: it has two characters, or one of a dense script."""
    return len(word) >= _SHORTEST or _DENSE.fullmatch(word) is not None


def _ends(text: str) -> Iterator[str]:
    """The ends of words from each place where a part begins: of `HTTPServer20`, `Server20` and `20`."""
    for word in _WORD.findall(text):
        if word.isalpha() and (word.islower() or word.isupper()):
            continue
        for i in range(1, len(word) - 1):
            before, here, after = word[i - 1], word[i], word[i + 1]
            begins = here.isupper() and (before.islower() or (before.isupper() and after.islower()))
            if begins or before.isdigit() != here.isdigit():
                yield from words(word[i:])


def _dense(text: str) -> list[str]:
    return [] if text.isascii() else _DENSE.findall(_folded(text))


def _pairs(run: str) -> list[str]:
    return [run[i : i + 2] for i in range(max(1, len(run) - 1))]


def limit_words(found: Iterable[str]) -> list[str]:
    """The first `MOST` of the words, without repetitions: as many as an entry holds."""
    return list(dict.fromkeys(found))[:MOST]


def scoped(word: str) -> str:
    """The scoped token of a word: a search finds an entry by it only together with a word of the entry's own."""
    return f" {word}"


def _folded(text: str) -> str:
    if text.isascii():
        return text.lower()
    # Each step may need the other one again: 𝕊 becomes S, İ becomes i with a dot above.
    for _ in range(3):
        apart = unicodedata.normalize("NFKD", text.casefold())
        text = unicodedata.normalize("NFC", "".join(c for c in apart if not unicodedata.combining(c)))
    return text
