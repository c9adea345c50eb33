"""Split texts, names and tags into words, in the same way for the index and for a search."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

MOST = 64  # words in one entry
_LONGEST = 64  # characters of a word
_WORD = re.compile(r"[^\W_]+")


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
