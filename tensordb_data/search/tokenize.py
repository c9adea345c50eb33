"""Words: how a text, a name or a tag is cut, when it is stored and when it is asked for."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

MOST = 64  # words of one entry
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
    """As many of the words as an entry holds."""
    return list(dict.fromkeys(found))[:MOST]


def scoped(word: str) -> str:
    """The form in which an entry holds a word that is not its own, by which it is found only together with others."""
    return f" {word}"


def _folded(text: str) -> str:
    if text.isascii():
        return text.lower()
    # Each may give the other something to do: 𝕊 becomes S, İ becomes i with a dot above.
    for _ in range(3):
        apart = unicodedata.normalize("NFKD", text.casefold())
        text = unicodedata.normalize("NFC", "".join(c for c in apart if not unicodedata.combining(c)))
    return text
