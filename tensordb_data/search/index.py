"""The search index: entries for entities, written before the entities are visible, so that none lacks its entry.

An entry may outlive the entity that it names. So a search checks that the entity still exists.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bson import Binary
from pymongo import UpdateOne
from pymongo.errors import OperationFailure

from tensordb_data.common.chunks import batched, chunks
from tensordb_data.mongo.errors import UNAUTHORIZED
from tensordb_data.mongo.retry import retry_while_unavailable
from tensordb_data.search.tokenize import index_words, limit_words, scoped, words
from tensordb_data.search.vocabulary import WORDS_PER_PAGE, Vocabulary

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

GROUPED = {"data": "dataset", "logs": "run"}
"""Kinds of which there may be millions: entities with the same value of this field and the same tags share an entry."""
NAMED = {"params": "run", "architectures": "name", "jobs": "kind"}
"""The other kinds have an entry for each entity, under the value of this field."""
GENERATION = 2
"""How the words of an entry are made. Entries of 0.1, without one, have no parts of words."""
REFRESH = 3600.0
"""Seconds after which a process writes an entry again that it has written before."""

_VALUES = 1000  # texts of one field with an entry each, in one dataset or run; if there are more, words have entries
_LONGEST = 200  # characters of such a text
_REMEMBERED = 100_000
_CHUNK = 1000
_SKIPPED = {
    kind: frozenset(("_id", "_tdb", "tags", name, *(["kind"] if kind == "logs" else [])))
    for kind, name in {**GROUPED, **NAMED}.items()
}

Group = tuple[str, tuple[str, ...]]
Text = tuple[str, str, str]
Groups = dict[Group, Any]
Texts = dict[Text, Any]


def entry_words(name: str, tags: Sequence[str], texts: Sequence[str], field: Mapping[str, Any]) -> list[str]:
    """The words under which an entry is found.

    There may be a thousand entries for texts or pages of one name, so the words of the name are scoped there: the name
    alone does not find them.
    """
    if "r" in field:
        return [*index_words(*field["r"]), *map(scoped, index_words(name))]
    if "v" in field:
        return limit_words([*index_words(*texts), *map(scoped, index_words(name))])
    return limit_words([*words(name, *tags, *texts), *index_words(name, *tags, *texts)])


def words_of(kind: str, docs: Sequence[Mapping[str, Any]]) -> tuple[Groups, Texts]:
    """Groups and texts of samples or log rows, each with the `_id` of one that has it; see `SearchIndex.add_groups`."""
    name = GROUPED[kind]
    groups = {(doc[name], tuple(doc["tags"])): doc["_id"] for doc in docs}
    fields = {field for doc in (*docs[:1], *docs[-1:]) for field, value in doc.items() if type(value) is str}
    texts = {
        (doc[name], field, doc[field]): doc["_id"]
        for field in fields - _SKIPPED[kind]
        for doc in docs
        if type(doc.get(field)) is str
    }
    return groups, texts


def renew(warehouse: Warehouse) -> None:
    """Give the entries that an earlier version has written the words under which this one finds them.

    This reads no entities. It is done by the first search, once for a warehouse.
    """
    try:
        _renew(warehouse)
    except OperationFailure as error:
        if error.code != UNAUTHORIZED:  # a user who may only read searches the entries as they are
            raise


def _renew(warehouse: Warehouse) -> None:
    entries, mark = warehouse.index["search"], {"_id": "warehouse"}
    if warehouse.index["warehouse"].find_one({**mark, "words": GENERATION}, {"_id": 1}) is not None:
        return
    old = entries.find({"g": {"$ne": GENERATION}}, dict.fromkeys(("n", "t", "x", "f", "at"), 1))
    for some in batched(old, _CHUNK):
        warehouse.index.update_each("search", [
            ({"_id": entry["_id"], "at": entry["at"]}, {"$set": {
                "w": entry_words(entry["n"], entry["t"], entry["x"], entry.get("f", {})), "g": GENERATION,
            }}) for entry in some
        ])  # fmt: skip
    warehouse.index["warehouse"].update_one(mark, {"$set": {"words": GENERATION}})


def search_index(warehouse: Warehouse, kind: str) -> SearchIndex:
    """The search index of a collection, as this process knows it."""
    return warehouse.memo(("search", kind), lambda: SearchIndex(warehouse, kind))


class SearchIndex:
    """Writes the entries of one collection, and remembers which ones it has written."""

    def __init__(self, warehouse: Warehouse, kind: str) -> None:
        self._warehouse, self._kind = warehouse, kind
        self._forget()

    def _forget(self) -> None:
        self._since = time.monotonic()
        self._groups: set[Group] = set()
        self._texts: dict[tuple[str, str], set[str]] = {}
        self._vocabularies: dict[tuple[str, str], Vocabulary] = {}

    def add_documents(self, docs: Sequence[Mapping[str, Any]]) -> None:
        """Write the entries of samples or log rows that are about to be inserted.

        This is nearly free if none is new.
        """
        if docs:
            self.add_groups(*words_of(self._kind, docs))

    def has(self, groups: Mapping[Group, Any], texts: Mapping[Text, Any]) -> bool:
        """Whether this process has written the entries of all of these, not long ago."""
        if time.monotonic() - self._since > REFRESH or not self._groups.issuperset(groups):
            return False
        empty: set[str] = set()
        return all(text in self._texts.get((name, field), empty) or not text.strip() for name, field, text in texts)

    def add_groups(self, groups: Mapping[Group, Any], texts: Mapping[Text, Any]) -> None:
        """Write the entries of groups and of texts.

        Args:
            groups: For each group, `(name, tags)`, the `_id` of one entity in it, or None. A search looks there first.
            texts: For each text of a field, `(name, field, text)`, the `_id` of one entity that has it, or None.
        """
        if time.monotonic() - self._since > REFRESH or len(self._groups) > _REMEMBERED:
            self._forget()
        new = [group for group in groups if group not in self._groups]
        entries = [self._group(*group, groups[group]) for group in new]
        fields: dict[tuple[str, str], dict[str, Any]] = {}
        for (name, field, text), member in texts.items():
            fields.setdefault((name, field), {})[text] = member
        met: dict[tuple[str, str], list[str]] = {}
        for (name, field), given in fields.items():
            known = self._known(name, field)
            unmet = given.keys() - known if known is not None else ()
            room = _VALUES - len(known or ())
            if known is None or (self._by_words and (len(unmet) > room or any(len(text) > _LONGEST for text in unmet))):
                self._add_words(name, field, given)
                continue
            met[name, field] = [text for text in given if text in unmet and text.strip()][:room]
            entries += [self._text(name, field, text, given[text]) for text in met[name, field]]
        self._write(entries)
        self._groups.update(new)
        for key, some in met.items():
            self._texts.get(key, set()).update(some)  # another thread may have begun to write words instead

    def _known(self, name: str, field: str) -> set[str] | None:
        """The texts of a field that have entries; None if its words have entries instead."""
        key = name, field
        if key not in self._texts and key not in self._vocabularies:
            words = retry_while_unavailable(lambda: self._stored(name, field), reads=True) if self._by_words else []
            if words:
                self._vocabularies[key] = Vocabulary(words)
            else:
                self._texts[key] = set()
        return self._texts.get(key)

    def _stored(self, name: str, field: str) -> list[str]:
        pages = self._warehouse.index["search"].find(self._of(name, field, "r"), {"f.r": 1})
        return [word for page in pages for word in page["f"]["r"]]

    @property
    def _by_words(self) -> bool:
        return self._kind == "data"

    def _of(self, name: str, field: str, what: str) -> dict[str, Any]:
        """The filter of the entries of a field: of texts, "v", or of words, "r"."""
        filter = {
            "p": self._warehouse.project,
            "k": self._kind,
            "n": name,
            "f.n": field,
            f"f.{what}": {"$exists": True},
        }
        return filter | (
            {"w": scoped(words(name)[0])} if words(name) else {}
        )  # this part of the filter is in the index

    def _add_words(self, name: str, field: str, texts: Mapping[str, Any]) -> None:
        """Write word pages for the texts of a field. This begins when there are too many texts for an entry each."""
        former = self._texts.get((name, field))
        if former is not None:
            texts = {**dict.fromkeys(former.copy()), **texts}
        vocabulary = self._vocabularies.get((name, field)) or Vocabulary()
        pieces, new = vocabulary.unmet(texts)
        pairs = list(new.items())
        self._write([self._words(name, field, dict(page)) for page in chunks(pairs, WORDS_PER_PAGE)])
        vocabulary.met(pieces, new)
        self._vocabularies[name, field] = vocabulary
        if former is not None:
            self._warehouse.index["search"].delete_many(self._of(name, field, "v"))
            self._texts.pop((name, field), None)

    def forget_words(self, name: str, field: str) -> None:
        """Remove the word pages of a field."""
        self._vocabularies.pop((name, field), None)
        self._warehouse.index["search"].delete_many(self._of(name, field, "r"))

    def add_entities(self, docs: Iterable[Mapping[str, Any]]) -> None:
        """Write the entries of parameter sets, architectures or jobs, in place of those that they had."""
        name = NAMED[self._kind]
        entries = []
        for doc in docs:
            named = str(doc.get(name) or "")
            texts = [
                value[:_LONGEST]
                for field, value in doc.items()
                if isinstance(value, str) and field not in _SKIPPED[self._kind]
            ]
            key = [str(doc["_id"])]
            entries.append(self._entry(key, named, list(doc.get("tags", ())), texts, {"e": doc["_id"]}))
        self._write(entries)

    def _group(self, name: str, tags: tuple[str, ...], member: Any) -> dict[str, Any]:
        ordered = sorted(set(tags))
        return self._entry(["group", name, *ordered], name, ordered, [], {"e": member})

    def _text(self, name: str, field: str, text: str, member: Any) -> dict[str, Any]:
        shown = text[:_LONGEST]
        more = {"f": {"n": field, "v": text}, "e": member}
        entry: dict[str, Any] = self._entry(["text", name, field, text], name, [], [shown], more)
        return entry

    def _words(self, name: str, field: str, found: Mapping[str, Any]) -> dict[str, Any]:
        """A word page: one entry for some words of a field, each with the `_id` of one entity that has it."""
        more = {"f": {"n": field, "r": list(found), "e": list(found.values())}}
        return self._entry(["words", name, field, *found], name, [], [], more)

    def _entry(
        self, key: list[str], name: str, tags: list[str], texts: list[str], more: dict[str, Any]
    ) -> dict[str, Any]:
        named = json.dumps([self._warehouse.project, self._kind, *key])
        return {
            "_id": Binary(hashlib.blake2b(named.encode(errors="replace"), digest_size=16).digest()),
            "p": self._warehouse.project, "k": self._kind, "n": name, "t": tags, "x": texts,
            "w": entry_words(name, tags, texts, more.get("f", {})), "g": GENERATION, **more,
        }  # fmt: skip

    def _write(self, entries: Sequence[dict[str, Any]]) -> None:
        index, now = self._warehouse.index, dt.datetime.now(dt.timezone.utc)
        for some in chunks(entries, _CHUNK):
            pairs = [({"_id": entry["_id"]}, {"$set": {**entry, "at": now}}) for entry in some]

            def write(pairs: Sequence[Any] = pairs) -> None:
                index["search"].bulk_write(
                    [UpdateOne(filter, update, upsert=True) for filter, update in pairs], ordered=False
                )

            if index.is_server and self._kind == "logs":  # the writer of a log tries again by itself
                write()
            elif index.is_server:
                index.write(write)
            else:  # mongomock cannot read pymongo's bulk operations
                for pair in pairs:
                    index["search"].update_one(*pair, upsert=True)
