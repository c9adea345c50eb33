"""The words of a field that has too many texts, or too long ones, for an entry each.

Many words share an entry, a word page. So a vocabulary is written as fast as its texts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

WORDS_PER_PAGE = 100
"""Words in one entry."""

_MOST = 100_000  # words of one field
_SEARCHED = 1000  # characters of a text
_RUN = re.compile(r"[^\W_]+")


def runs(text: str) -> set[str]:
    """The words of a text in lower case, with their accents: what a query on the field can match."""
    return {run for piece in text[:_SEARCHED].lower().split() for run in _runs(piece)}


def _runs(piece: str) -> list[str]:
    found: list[str] = _RUN.findall(piece)
    return found or [piece]


def pattern(forms: Sequence[str], *, is_server: bool) -> dict[str, str]:
    """The condition on a field that its text has one of these words.

    Args:
        forms: Words as `runs` gives them.
        is_server: Whether MongoDB gets it. It needs an option to know letters outside ASCII.
    """
    either = "|".join(map(re.escape, forms))
    return {"$regex": f"{'(*UCP)' if is_server else ''}(?<![^\\W_])(?:{either})(?![^\\W_])", "$options": "i"}


def has_all(text: object, words: Iterable[Iterable[str]]) -> bool:
    """Whether a text has each of some words, in one of the forms given for it."""
    own = runs(text) if isinstance(text, str) else set()
    return all(not own.isdisjoint(forms) for forms in words)


class Vocabulary:
    """The words of one field that are in word pages.

    Args:
        words: Those that had one before.
    """

    def __init__(self, words: Iterable[str] = ()) -> None:
        self._pieces: set[str] = set()  # as cut at blanks, which is many times as fast as finding words
        self._words = set(words)

    def unmet(self, texts: Mapping[str, Any]) -> tuple[set[str], dict[str, Any]]:
        """What of some texts is new, to be given to `met` once it has entries.

        Args:
            texts: The `_id` of one that has it, by text.

        Returns:
            Pieces, and the `_id` of one that has it by word.
        """
        known, pieces = self._pieces, set[str]()
        words: dict[str, Any] = {}
        for text, member in texts.items():
            if len(self._words) + len(words) >= _MOST:
                break
            for piece in text[:_SEARCHED].lower().split():
                if piece not in known and piece not in pieces:
                    pieces.add(piece)
                    for run in _runs(piece):
                        if run not in self._words and run not in words:
                            words[run] = member
        return pieces, words

    def met(self, pieces: set[str], words: Iterable[str]) -> None:
        """These have entries now."""
        if len(self._pieces) > 4 * _MOST:
            self._pieces.clear()
        self._pieces |= pieces
        self._words.update(words)
