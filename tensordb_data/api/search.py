"""Search: find the entries that have the words, score them, and read the entities that they name."""

from __future__ import annotations

import datetime as dt
import itertools
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pymongo.errors import ExecutionTimeout

from tensordb_data.api.selection import Selection
from tensordb_data.common.bson_values import COLLECTIONS
from tensordb_data.errors import QueryError
from tensordb_data.query.frozen_set import Frozen
from tensordb_data.query.query import Query
from tensordb_data.search.index import GROUPED, REFRESH, renew, search_index
from tensordb_data.search.tokenize import index_words, may_begin, scoped, search_words, words
from tensordb_data.search.vocabulary import has_all, pattern
from tensordb_data.time.cards import FrozenRecord
from tensordb_data.warehouse.bound_query import BoundQuery

if TYPE_CHECKING:
    from tensordb_data.api.protocol import Facade
    from tensordb_data.warehouse.record import Record

_WORDS = 10  # of a search
_CANDIDATES = 100  # entries that are looked at for a word, and for all words together
_COUNTED = 1000  # how far the entries of a word are counted
_SEEN = 2000  # entries of the rarest word that are looked through for the others
_NAME, _TAG, _TEXT = 3.0, 2.0, 1.0
_PREFIX = 0.5
_MOST_FORMS = 20  # of a word that was cut short, in one query
_LOOK_MS = 100
_TOGETHER_MS = 15  # of a search, for looks whether there is a text with several words of a field
_READ = dict.fromkeys(("k", "n", "t", "x", "f", "e", "at"), 1)  # of an entry: its words are for the index
_SETS = 1000  # frozen sets that are looked at
_STALE = dt.timedelta(seconds=24 * REFRESH)


@dataclass(frozen=True)
class Hit:
    """One hit of a search: an entity, or samples or log rows that share a name and tags."""

    kind: str
    """The collection."""
    name: str
    """The dataset of samples, or of frozen ones their set; the run of log rows and checkpoints, the name of an
    architecture, the kind of a job."""
    tags: tuple[str, ...]
    score: float
    """For comparison within one search. Hits are ordered by the number of words found first, then by score."""
    query: Query
    """The query that names exactly the entities that were found: plain data."""
    entity: Record
    """The entity, or one of the samples or rows."""
    db: Facade

    @property
    def selection(self) -> Selection[Any]:
        """The entities that were found, to read, count, tag or stream."""
        found: Selection[Any] = self.db.select(self.query)
        return found

    @property
    def id(self) -> Any:
        """The `_id` of `entity`."""
        return self.entity.id

    def __getitem__(self, field: str) -> Any:
        return self.entity[field]

    def __repr__(self) -> str:
        tags = f" {list(self.tags)}" if self.tags else ""
        return f"<Hit {self.score:.2f} {self.kind} {self.name!r}{tags}>"


def search(db: Facade, text: str, kind: str | Sequence[str] | None, limit: int) -> list[Hit]:
    """See `TensorDB.search`."""
    if not isinstance(text, str):
        raise QueryError(f'search takes words, "chest ct 2024" say; found {text!r:.200}')
    kinds = list(COLLECTIONS) if kind is None else [kind] if isinstance(kind, str) else list(kind)
    unknown = [name for name in kinds if name not in COLLECTIONS]
    if unknown or not kinds:
        raise QueryError(f"kind= is one or more of {', '.join(COLLECTIONS)}; found {kind!r}")
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise QueryError(f"limit is a number of hits, at least 1; found {limit!r}")
    wanted = search_words(text)[:_WORDS]
    if not wanted:
        return []
    if not db.warehouse.address.read_only:
        db.warehouse.memo(("search", "renewed"), lambda: renew(db.warehouse))
    scope = {"p": db.project, "k": {"$in": kinds}}
    store = db.warehouse.index["search"]
    size = store.estimated_document_count()
    rare = {
        word: math.log(1 + size / (1 + store.count_documents({**scope, "w": word}, limit=_COUNTED))) for word in wanted
    }
    found = _candidates(store, scope, wanted, max(limit, _CANDIDATES)).values()
    scored: list[Any] = [
        (*_score(entry, wanted, rare), entry["at"], bytes(entry["_id"]), entry)
        for entry in (
            *(one for one in found if not _is_word_page(one)),
            *_by_words(filter(_is_word_page, found), wanted),
        )
    ]
    if "data" in kinds:
        scored += [(*_score(entry, wanted, rare), entry["at"], bytes(entry["_id"]), entry) for entry in _frozen(db)]
    scored.sort(key=lambda one: one[:4], reverse=True)
    return _alive(db, ((score, entry) for hits, score, _, _, entry in scored if hits), limit)


def _frozen(db: Facade) -> Iterator[Mapping[str, Any]]:
    """Entries for the newest frozen sets. There are few, so that they need none in the index."""
    found = db.warehouse.index["frozen"].find({"_tdb.p": db.project}, {"_tdb": 0}).sort("_id", -1).limit(_SETS)
    for doc in found:
        if not isinstance(doc.get("created"), dt.datetime):  # another tool has changed it
            continue
        name, tags = str(doc.get("name")), [str(tag) for tag in doc.get("tags") or ()]
        yield {
            "_id": doc["_id"].binary, "k": "data", "n": name, "t": tags, "x": [], "at": doc["created"], "frozen": doc,
        }  # fmt: skip


def _candidates(
    store: Any, scope: Mapping[str, Any], wanted: Sequence[str], most: int
) -> dict[bytes, Mapping[str, Any]]:
    """Find candidates: the newest entries with each word, some with longer words, and entries with all words.

    Entries with all words are looked for among the newest entries of the rarest word, and of words that begin with it.

    Args:
        store: The collection of entries.
        scope: Project and kinds.
        wanted: The words.
        most: How many entries to take for a word, and for all words together.
    """
    found: dict[bytes, Mapping[str, Any]] = {}

    def take(entries: Iterable[Mapping[str, Any]]) -> None:
        found.update((entry["_id"], entry) for entry in entries)

    for word in wanted:
        take(store.find({**scope, "w": word}, _READ).sort("at", -1).limit(most))
        if may_begin(word):
            take(store.find({**scope, "w": _longer(word)}, _READ).limit(most))
    if len(wanted) > 1:
        first = min(wanted, key=lambda word: store.count_documents({**scope, **_begins(word)}, limit=_SEEN))
        together = {"$match": {"$and": [_begins(word) for word in wanted if word != first]}}
        newest = [{"$match": {**scope, "w": {"$in": [first, scoped(first)]}}}, {"$sort": {"at": -1}}]
        longer = [{"$match": {**scope, "$or": [{"w": _longer(first)}, {"w": _longer(scoped(first))}]}}]
        for looked in (newest, longer):
            take(store.aggregate([*looked, {"$limit": _SEEN}, together, {"$limit": most}, {"$project": _READ}]))
    return found


def _by_words(found: Iterable[Mapping[str, Any]], wanted: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """Make entries from word pages: for each field, one for the texts with each word, one for those with all."""
    fields: dict[tuple[str, str, str], tuple[_Spellings, ...]] = {}
    begins = tuple(wanted)
    for entry in found:
        key = entry["k"], entry["n"], entry["f"]["n"]
        forms = fields.setdefault(key, tuple(_Spellings(word) for word in wanted))
        for own, member in zip(entry["f"]["r"], entry["f"]["e"], strict=True):
            if own.isascii() and not own.startswith(begins):  # nearly all of ten thousand, at once
                continue
            parts = [own] if own.isascii() else index_words(own)
            for one in forms:
                one.look(own, parts, member, entry["at"])
    for (kind, name, field), forms in fields.items():
        each = [one for one in forms if one.best]
        for some in (*((one,) for one in each), *([each] if len(each) > 1 else [])):
            texts = [list(one.best)[:_MOST_FORMS] for one in some]
            own = [text for one in texts for text in one]
            member, at = some[0].best[own[0]]
            yield {
                "_id": repr((kind, name, field, own)).encode(), "k": kind, "n": name, "t": [], "x": own,
                "f": {"n": field, "r": texts}, "e": member, "at": at,
            }  # fmt: skip


class _Spellings:
    """The spellings of one searched word in a field: the words that equal it without accents, or else longer ones.

    A text spells "cafe" as "café", say. If no word of the field equals the searched one, words that begin with it
    count.
    """

    def __init__(self, wanted: str) -> None:
        self._wanted = wanted
        self._whole: dict[str, tuple[Any, dt.datetime]] = {}
        self._longer: dict[str, tuple[Any, dt.datetime]] = {}

    def look(self, own: str, parts: Sequence[str], member: Any, at: dt.datetime) -> None:
        if self._wanted in parts:
            self._whole[own] = member, at
        elif may_begin(self._wanted) and any(part.startswith(self._wanted) for part in parts):
            self._longer[own] = member, at

    @property
    def best(self) -> dict[str, tuple[Any, dt.datetime]]:
        return self._whole or self._longer


def _is_word_page(entry: Mapping[str, Any]) -> bool:
    return "r" in entry.get("f", ())


def _are_together(entry: Mapping[str, Any]) -> bool:
    """Whether an entry stands for texts that have several words. There may be no such text."""
    return _is_word_page(entry) and len(entry["f"]["r"]) > 1


def _begins(word: str) -> dict[str, Any]:
    """The filter of entries with a word or, if it is long enough, a longer one that begins with it, scoped or not."""
    above = "\U0010ffff" if may_begin(word) else "\0"
    return {"$or": [{"w": {"$elemMatch": {"$gte": form, "$lt": f"{form}{above}"}}} for form in (word, scoped(word))]}


def _longer(word: str) -> dict[str, Any]:
    return {"$elemMatch": {"$gt": word, "$lt": f"{word}\U0010ffff"}}


def _score(entry: Mapping[str, Any], wanted: Sequence[str], rare: Mapping[str, float]) -> tuple[int, float]:
    """Score an entry: how many of the words it has, and the sum of their weights.

    A weight depends on where the word is, how rare it is, and whether it is whole. An entry of a text scores nothing if
    only the name of its dataset or run has a word: the name has an entry of its own.
    """
    weights: dict[str, float] = {}
    parts: dict[str, float] = {}
    for weight, texts in ((_TEXT, entry["x"]), (_TAG, entry["t"]), (_NAME, [entry["n"]])):
        weights.update(dict.fromkeys(words(*texts), weight))
        parts.update(dict.fromkeys(index_words(*texts), weight))
    hits, score = 0, 0.0
    if "f" in entry and not any(own.startswith(word) for own in index_words(*entry["x"]) for word in wanted):
        return hits, score
    for word in wanted:
        best = weights.get(word, 0.0)
        if not best and may_begin(word):
            best = max((_PREFIX * weight for other, weight in parts.items() if other.startswith(word)), default=0.0)
        hits += best > 0
        score += best * rare[word]
    return hits, score


def _alive(db: Facade, scored: Iterable[tuple[float, Mapping[str, Any]]], limit: int) -> list[Hit]:
    """The first `limit` entries whose entities exist, as hits. Old entries whose entities are gone are removed."""
    hits: list[Hit] = []
    stale: list[Any] = []
    left = _TOGETHER_MS
    rest = iter(scored)
    while len(hits) < limit and (some := list(itertools.islice(rest, limit - len(hits)))):
        members = _members(db, [entry for _, entry in some if "frozen" not in entry])
        for score, entry in some:
            if (doc := entry.get("frozen")) is not None:
                query = Query("data", frozen=Frozen(entry["n"], doc["_id"]))
                record = FrozenRecord(db.warehouse, doc)
                hits.append(Hit("data", entry["n"], tuple(entry["t"]), score, query, record, db))
                continue
            query = _query(entry, is_server=db.warehouse.index.is_server)
            entity = members.get(entry["_id"])
            if entity is None and _are_together(entry):
                began = time.monotonic()
                entity = _one(db, query, entry, left) if left >= 1 else None
                left -= round(1e3 * (time.monotonic() - began))
            elif entity is None:
                entity = _one(db, query, entry, _LOOK_MS)
            if entity is not None:
                hits.append(Hit(entry["k"], entry["n"], tuple(entry["t"]), score, query, entity, db))
            elif not _is_word_page(entry) and _age(entry["at"]) > _STALE:
                stale.append({"_id": entry["_id"], "at": entry["at"]})
            elif db.warehouse.address.read_only:
                continue
            elif _is_word_page(entry) and not db.data.find({"dataset": entry["n"]}).head(1):
                search_index(db.warehouse, "data").forget_words(entry["n"], entry["f"]["n"])
    if stale and not db.warehouse.address.read_only:
        db.warehouse.index["search"].delete_many({"$or": stale})
    return hits


def _age(at: dt.datetime) -> dt.timedelta:
    # A client of the user's own may give times with their zone.
    return dt.datetime.now(dt.timezone.utc) - (at if at.tzinfo else at.replace(tzinfo=dt.timezone.utc))


def _query(entry: Mapping[str, Any], *, is_server: bool) -> Query:
    kind = entry["k"]
    if kind not in GROUPED:
        return Query(kind, {"_id": entry["e"]})
    filter: dict[str, Any] = {GROUPED[kind]: entry["n"]}
    if entry["t"]:
        filter["tags"] = entry["t"][0] if len(entry["t"]) == 1 else {"$all": entry["t"]}
    if "v" in entry.get("f", ()):
        filter[entry["f"]["n"]] = entry["f"]["v"]
    elif "f" in entry:
        each = [{entry["f"]["n"]: pattern(forms, is_server=is_server)} for forms in entry["f"]["r"]]
        filter |= each[0] if len(each) == 1 else {"$and": each}
    return Query(kind, filter)


def _members(db: Facade, entries: Sequence[Mapping[str, Any]]) -> dict[bytes, Record]:
    """Read the entities that entries name by `_id`, if they still have the name, the tags and the text of the entry.

    Returns:
        The entities, by the `_id` of their entries.
    """
    found: dict[bytes, Record] = {}
    for kind in {entry["k"] for entry in entries}:
        named = [entry for entry in entries if entry["k"] == kind and "e" in entry]
        selection = BoundQuery(db.warehouse, Query(kind, {"_id": {"$in": [entry["e"] for entry in named]}}))
        docs = {doc["_id"]: doc for doc in selection.collection.find(selection.filter())} if named else {}
        pairs = [(entry, docs[entry["e"]]) for entry in named if entry["e"] in docs]
        pairs = [(entry, doc) for entry, doc in pairs if _fits(kind, entry, doc)]
        entities = db.collection(selection.query.collection).entities([doc for _, doc in pairs])
        found.update((entry["_id"], entity) for (entry, _), entity in zip(pairs, entities, strict=True))
    return found


def _fits(kind: str, entry: Mapping[str, Any], doc: Mapping[str, Any]) -> bool:
    if kind not in GROUPED:
        return True
    text = True
    if "v" in entry.get("f", ()):
        text = doc.get(entry["f"]["n"]) == entry["f"]["v"]
    elif "f" in entry:
        text = has_all(doc.get(entry["f"]["n"]), entry["f"]["r"])
    return text and doc.get(GROUPED[kind]) == entry["n"] and set(entry["t"]) <= set(doc.get("tags", ()))


def _one(db: Facade, query: Query, entry: Mapping[str, Any], most_ms: int) -> Record | None:
    """Find one of the entities that an entry names by a query, and note it in the entry for the next search."""
    if entry["k"] not in GROUPED:
        return None
    selection = BoundQuery(db.warehouse, query)
    limit = {"max_time_ms": most_ms} if db.warehouse.index.is_server else {}
    try:
        doc = selection.collection.find_one(selection.filter(), **limit)
    except ExecutionTimeout:
        if _are_together(entry):  # each of the words exists, but there may be no text with all of them
            return None
        # A matching entity exists, far down. To show its fields is not worth the wait.
        doc = {"_id": None, GROUPED[entry["k"]]: entry["n"], "tags": entry["t"]}
    if doc is None:
        return None
    if doc["_id"] is not None and not _is_word_page(entry) and not db.warehouse.address.read_only:
        db.warehouse.index["search"].update_one({"_id": entry["_id"]}, {"$set": {"e": doc["_id"]}})
    record: Record = db.collection(selection.query.collection).entities([doc])[0]
    return record
