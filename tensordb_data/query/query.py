"""Query: which entities, in which order, as a plain value that can be stored, compared and sent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from bson import json_util

from tensordb_data.common.bson_values import COLLECTIONS, JSON, plain
from tensordb_data.common.options import suggesting
from tensordb_data.errors import QueryError
from tensordb_data.query.frozen_set import Frozen, clean_frozen
from tensordb_data.query.ids import with_ids
from tensordb_data.query.large_in import Split, is_large, size_of, split
from tensordb_data.query.source import python

if TYPE_CHECKING:
    from typing_extensions import Unpack

Filter = Mapping[str, Any]
Sort = str | Mapping[str, int] | Sequence[str | tuple[str, int]]

_INTERNAL = "_tdb"


class QueryChanges(TypedDict, total=False):
    """What `Query.replace` changes."""

    collection: str
    filter: Filter | None
    sort: Sort | None
    limit: int | None
    fields: Sequence[str] | None


class Query:
    """A frozen query: collection, filter, sort, limit and fields.

    Two queries are equal if they have the same JSON. The order of the top-level keys of the filter does not matter.

    Args:
        collection: `"data"`, `"architectures"`, `"params"`, `"jobs"` or `"logs"`.
        filter: MongoDB's query language. Operators that run code on the server are refused. Ids may be written as text.
            An `$in` that makes it larger than 16 MB is sent in several parts, if the query has no sort. To update, tag
            or delete, it has to be one on `_id`.
        sort: `[("val_acc", -1), …]`, a dict of the same, or a field name for ascending order.
        limit: The most entities to return, at least 1; None for all.
        fields: Names of the fields to read; None for all. `_id` and `tags` are always read.
        frozen: The name of a frozen set of samples, whose samples are selected as they were; without a filter or sort.

    Raises:
        QueryError: An argument is malformed or refused. The message says where, and what to write instead.
    """

    __slots__ = ("_collection", "_fields", "_filter", "_frozen", "_limit", "_sort", "_split", "_text")

    def __init__(
        self,
        collection: str,
        filter: Filter | None = None,
        *,
        sort: Sort | None = None,
        limit: int | None = None,
        fields: Iterable[str] | None = None,
        frozen: str | Frozen | Mapping[str, Any] | None = None,
    ) -> None:
        if collection not in COLLECTIONS:
            raise QueryError(f"no collection {collection!r}; there are {', '.join(COLLECTIONS)}")
        self._collection = collection
        self._filter = with_ids(collection, clean_filter(filter))
        self._sort = clean_sort(sort)
        self._limit = clean_limit(limit)
        self._fields = _clean_fields(fields)
        self._frozen = clean_frozen(frozen)
        if self._frozen is not None and (collection != "data" or self._filter or self._sort):
            raise QueryError(
                f"the frozen set {self._frozen.name!r} has its samples and their order for ever: it takes no filter and"
                " no sort. Filter before you freeze: db.data.find({...}).freeze(name)"
            )
        self._split = _split(self._filter, self._sort)
        self._text: str | None = None

    @property
    def collection(self) -> str:
        """The collection's name."""
        return self._collection

    @property
    def filter(self) -> dict[str, Any]:
        """The filter, a copy."""
        return dict(_copied(self._filter))

    @property
    def split(self) -> Split | None:
        """How the filter is sent, if it has so large an `$in` that the server does not take it at once."""
        return self._split

    @property
    def sort(self) -> tuple[tuple[str, int], ...] | None:
        """Pairs of field and direction (1 or -1), or None for the collection's own order."""
        return self._sort

    @property
    def limit(self) -> int | None:
        """The most entities to return, or None."""
        return self._limit

    @property
    def fields(self) -> tuple[str, ...] | None:
        """The fields to read, or None for all."""
        return self._fields

    @property
    def frozen(self) -> Frozen | None:
        """The frozen set that is selected, or None for what is there now."""
        return self._frozen

    @property
    def _json(self) -> str:
        if self._text is None:
            self._text = self._canonical()
        return self._text

    @property
    def fingerprint(self) -> str:
        """A hash of the query, of 32 hexadecimal digits. Equal queries have the same one in every process."""
        return hashlib.blake2b(self._json.encode(), digest_size=16).hexdigest()

    def to_json(self) -> str:
        """The query as canonical extended JSON, for `Query.from_json`."""
        return self._json

    @classmethod
    def from_json(cls, text: str) -> Query:
        """Reads a query that `to_json` wrote. The same rules are checked again.

        Raises:
            QueryError: The text is not JSON, has unknown keys, or breaks a rule.
        """
        try:
            doc = json.loads(text)
        except (TypeError, ValueError, RecursionError) as error:
            raise QueryError(f"a query in JSON was expected, this is not JSON: {error}") from None
        if not isinstance(doc, dict) or "collection" not in doc:
            raise QueryError('a query in JSON is an object with "collection", "filter", "sort", "limit", "fields"')
        unknown = set(doc) - {"collection", "filter", "sort", "limit", "fields", "frozen"}
        if unknown:
            raise QueryError(f"a query has no {', '.join(map(repr, sorted(unknown)))}; it has "
                             "collection, filter, sort, limit, fields and frozen")  # fmt: skip
        sort = doc.get("sort")
        if isinstance(sort, list):
            sort = [tuple(pair) if isinstance(pair, list) else pair for pair in sort]
        return cls(
            doc["collection"], doc.get("filter"), sort=sort, limit=doc.get("limit"), fields=doc.get("fields"),
            frozen=doc.get("frozen"),
        )  # fmt: skip

    @suggesting(QueryChanges)
    def replace(self, **changes: Unpack[QueryChanges]) -> Query:
        """A copy with some of filter, sort, limit and fields changed."""
        if "filter" not in changes and all(getattr(self, name) == value for name, value in changes.items()):
            return self
        parts: dict[str, Any] = {
            "collection": self._collection, "filter": self._filter, "sort": self._sort, "limit": self._limit,
            "fields": self._fields, "frozen": self._frozen,
        }  # fmt: skip
        return Query(**{**parts, **changes})

    def _canonical(self) -> str:
        doc = {
            "collection": self._collection,
            "filter": {key: self._filter[key] for key in sorted(self._filter)},
            "sort": None if self._sort is None else [list(pair) for pair in self._sort],
            "limit": self._limit,
            "fields": None if self._fields is None else list(self._fields),
        }
        if self._frozen is not None:
            id = self._frozen.id
            doc["frozen"] = {"name": self._frozen.name, **({} if id is None else {"id": str(id)})}
        # Numbers of our own stay plain JSON; those of the filter keep their BSON type.
        doc["filter"] = json.loads(json_util.dumps(doc["filter"], json_options=JSON))
        return json.dumps(doc, separators=(",", ":"), ensure_ascii=False)

    def __eq__(self, other: object) -> bool:
        return self._json == other._json if isinstance(other, Query) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._json)

    def __reduce__(self) -> tuple[Any, ...]:
        return Query.from_json, (self._json,)

    def __copy__(self) -> Query:
        return self

    def __deepcopy__(self, memo: Any) -> Query:
        return self

    def python(self, db: str = "db") -> str:
        """Python source that selects the same: `db.data.find({'label': 3}, limit=5)`, below the imports that it needs.

        Args:
            db: The name of the warehouse in the source.
        """
        if self._frozen is not None:
            found = f"{db}.data.frozen({self._frozen.name!r})"
            changes = ", ".join(
                f"{name}={value!r}" for name, value in (("limit", self._limit), ("fields", self._fields)) if value
            )
            return f"{db}.select({found}.query.replace({changes}))" if changes else found
        options = {"sort": self._sort, "limit": self._limit, "fields": self._fields}
        return python(f"{db}.{self._collection}.find", self._filter, options)

    @property
    def brief(self) -> str:
        """The repr, cut short for messages."""
        text = repr(self)
        return text if len(text) <= 300 else f"{text[:297]}..."

    def __repr__(self) -> str:
        parts = [repr(self._collection), repr(self._filter)]
        if self._frozen is not None:
            parts[1] = f"frozen={self._frozen.name!r}"
        for name, value in (("sort", self._sort), ("limit", self._limit), ("fields", self._fields)):
            if value is not None:
                parts.append(f"{name}={list(value) if isinstance(value, tuple) else value!r}")
        return f"Query({', '.join(parts)})"


def clean_filter(filter: Filter | None) -> dict[str, Any]:
    """A checked deep copy of a filter.

    Raises:
        QueryError: It is not a dict, or mentions what is internal or refused.
    """
    if filter is None:
        return {}
    if not isinstance(filter, Mapping):
        raise QueryError(f'a filter is a dict such as {{"dataset": "fashion"}}; found {type(filter).__name__}')
    out = plain(filter, _refused_in("filter"), filter=True)
    if not isinstance(out, dict):
        raise QueryError(f"a filter is a dict of fields and conditions; found {filter!r}")
    refuse_internal(out, False)
    return out


def _split(filter: dict[str, Any], sort: Any) -> Split | None:
    if not is_large(filter):
        return None
    found = None if sort else split(filter)
    if found is None:
        raise too_large(filter)
    return found


def too_large(filter: Mapping[str, Any]) -> QueryError:
    """The error for a filter that the server does not take, where it cannot be split."""
    return QueryError(
        f"the filter has {size_of(filter) / 2**20:.0f} MB, and MongoDB takes 16 MB: ask in several parts, or select by"
        " a field or a tag that the entities have in common. Only a large $in is split, of a query without a sort: on"
        " any field in find, count, distinct and streams, on _id also in update, tag and delete"
    )


def _copied(value: Any) -> Any:
    """A copy of a clean filter; its values are immutable."""
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copied(item) if isinstance(item, (dict, list)) else item for item in value]
    return value


def names(filter: Mapping[str, Any]) -> set[str] | None:
    """The top-level fields that a filter looks at, or None when it may look at any."""
    found: set[str] = set()
    for key, value in filter.items():
        if key in ("$and", "$or", "$nor") and isinstance(value, list):
            for part in value:
                inner = names(part) if isinstance(part, Mapping) else None
                if inner is None:
                    return None
                found |= inner
        elif key == "$comment":
            continue
        elif key.startswith("$"):
            return None
        else:
            found.add(key.split(".")[0])
    return found


def check_name(name: object, what: str) -> str:
    """`name` if it can be a field in a sort, a field list or an index."""
    if (instead := getattr(name, "instead", None)) is not None:
        raise QueryError(f"{what}: {name!r:.200}: {instead}")
    if not isinstance(name, str) or not name:
        raise QueryError(f"{what}: a field is named by a non-empty string; found {name!r}")
    if name.startswith("$") or "\0" in name or ".$" in name:
        raise QueryError(f"{what}: {name!r} is not a field name; operators and expressions are not allowed here")
    if name.split(".")[0] == _INTERNAL:
        raise QueryError(f"{what}: {name!r} is internal to TensorDB and not part of the query language")
    return name


def refuse_internal(value: Any, expression: bool) -> None:
    """Refuse names of what is internal.

    Args:
        value: A filter, or a part of it.
        expression: Whether it is an expression, in which texts name fields, too.

    Raises:
        QueryError: There is one.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            if key.split(".")[0] == _INTERNAL:
                raise QueryError(f"{key!r} is internal to TensorDB and not part of the query language; "
                                 "the project is already part of every query")  # fmt: skip
            refuse_internal(item, expression or key == "$expr")
    elif isinstance(value, list):
        for item in value:
            refuse_internal(item, expression)
    elif expression and isinstance(value, str) and value.lstrip("$").split(".")[0] == _INTERNAL:
        raise QueryError(f"{value!r} is internal to TensorDB and not part of the query language")


def clean_sort(sort: Any) -> tuple[tuple[str, int], ...] | None:
    """A checked sort, as pairs of field and direction.

    Raises:
        QueryError: It is malformed.
    """
    if sort is None:
        return None
    pairs: list[Any]
    if isinstance(sort, str):
        pairs = [sort]
    elif isinstance(sort, Mapping):
        pairs = list(sort.items())
    elif isinstance(sort, Iterable):
        pairs = list(sort)
    else:
        raise QueryError(f'sort is a list such as [("label", 1)]; found {sort!r}')
    out: list[tuple[str, int]] = []
    for pair in pairs:
        name, direction = (pair, 1) if isinstance(pair, str) else _pair(pair)
        if isinstance(direction, bool) or direction not in (1, -1):
            raise QueryError(
                f"sort by {name!r}: the direction is 1 (ascending) or -1 (descending); found {direction!r}"
            )
        if isinstance(pair, str) and pair.startswith("-"):
            raise QueryError(f'sort: for descending order write ("{pair[1:]}", -1); found {pair!r}')
        out.append((check_name(name, "sort"), int(direction)))
    if len({name for name, _ in out}) < len(out):
        raise QueryError(f"sort names a field twice: {out}")
    return tuple(out) or None


def _pair(pair: Any) -> tuple[Any, Any]:
    if isinstance(pair, (tuple, list)) and len(pair) == 2:
        return pair[0], pair[1]
    raise QueryError(f'sort is a list of pairs such as ("label", 1); found {pair!r}')


def clean_limit(limit: Any) -> int | None:
    """A checked limit.

    Raises:
        QueryError: It is malformed.
    """
    if limit is None:
        return None
    if isinstance(limit, bool) or not isinstance(limit, (int, np.integer)):
        raise QueryError(f"limit is a whole number or None; found {limit!r}")
    if not 1 <= limit < 2**31:
        raise QueryError(f"limit must be between 1 and 2147483647; found {limit} (None means no limit)")
    return int(limit)


def _clean_fields(fields: Any) -> tuple[str, ...] | None:
    if fields is None:
        return None
    if isinstance(fields, (str, Mapping)) or not isinstance(fields, Iterable):
        raise QueryError(f'fields is a list of names such as ["image", "label"]; found {fields!r}')
    out = tuple(check_name(name, "fields") for name in fields)
    if len(set(out)) < len(out):
        raise QueryError(f"fields names a field twice: {list(out)}")
    for name in out:
        inside = [other for other in out if other.startswith(name + ".")]
        if inside:
            raise QueryError(f"fields names both {name!r} and {inside[0]!r}, which is part of it; keep one")
    return out


def _refused_in(what: str) -> Any:
    return lambda message: QueryError(f"{what}: {message}")
