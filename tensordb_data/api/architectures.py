"""Architectures: what makes a model, stored as a reference to a function, or in a format that describes itself."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bson import ObjectId
from pymongo.errors import DuplicateKeyError

from tensordb_data.api.collection import Collection
from tensordb_data.api.record import LinkedRecord
from tensordb_data.api.selection import Selection
from tensordb_data.architectures.formats import pack, unpack
from tensordb_data.architectures.source_text import module_source
from tensordb_data.common.bson_values import plain
from tensordb_data.common.import_paths import Allow, resolve, split
from tensordb_data.common.options import OptionGroup, Written
from tensordb_data.errors import ArchitectureError, ConnectError, QueryError
from tensordb_data.query.query import Query
from tensordb_data.query.tags import clean_tags
from tensordb_data.query.update import clean_update
from tensordb_data.search.index import search_index
from tensordb_data.tensors.blob import read_blob, write_blob
from tensordb_data.warehouse.bound_query import BoundQuery

if TYPE_CHECKING:
    from tensordb_data.api.protocol import Facade
    from tensordb_data.params.parameter_set import ParameterSet

FACTORY = "factory"
_ATTEMPTS = 20  # versions that others may take while this one looks for its own


class Architecture(LinkedRecord):
    """One version of an architecture, as it was when it was read."""

    __slots__ = ()

    collection = "architectures"

    @property
    def name(self) -> str:
        """Its name."""
        return str(self._doc["name"])

    @property
    def version(self) -> int:
        """1 for the first architecture that was saved under the name, 2 for the second, and so on."""
        return int(self._doc["version"])

    @property
    def format(self) -> str:
        """`"factory"`, `"keras"`, `"torch.export"` or `"onnx"`."""
        return str(self._doc["format"])

    @property
    def query(self) -> Query:
        """The query that names exactly this version: plain data, to store in a job or a configuration."""
        return Query("architectures", {"_id": self.id})

    @property
    def source(self) -> str | None:
        """The source of the factory's module as it was when it was saved. It is never run. None if there is none."""
        return self._attached() if self.format == FACTORY and self._doc["_tdb"].get("blob") else None

    @property
    def data(self) -> bytes:
        """The stored bytes: the JSON of a Keras model, an ONNX or torch export file, checked against its checksum.

        Raises:
            ArchitectureError: The architecture is a factory, which has no such bytes.
            StorageError: The blob store failed.
        """
        if self.format == FACTORY:
            raise ArchitectureError(f"{self._label} is a factory: there is a `source`, and no data")
        return read_blob(self._warehouse, self._doc["_tdb"]["blob"], self._label)

    def build(
        self, *, allow: Sequence[str] = (), params: Selection[ParameterSet] | ParameterSet | Query | None = None
    ) -> Any:
        """Builds the model: what the factory returns, a Keras model, a torch module, or an ONNX Runtime session.

        Args:
            allow: What may be imported and run: `["mypkg."]` for a package and everything in it, `["mypkg.nets"]` for a
                module, `["mypkg.nets:cnn"]` for one function. A factory needs it, and so do classes of your own in a
                Keras model. A torch export program needs `["torch.export"]`, because loading it can run code that is
                stored in it. Plain Keras models (loaded in safe mode) and ONNX models need nothing.
            params: The checkpoint to load into the model: a parameter set, or a Selection or query, of which the first
                is loaded.

        Raises:
            NotAllowedError: The architecture needs code outside of `allow`. Nothing of it was imported.
            ArchitectureError: No model can be built here.
            NotFoundError: `params` matches nothing.
            StateError: The parameters do not fit the model.
            MissingExtraError: Its framework is not installed.
        """
        allowed = Allow(allow)
        chosen = self._chosen(params)
        if self.format == FACTORY:
            factory = resolve(self._doc["factory"], allowed)
            try:
                model = factory(**self._doc["kwargs"])
            except TypeError as error:
                raise ArchitectureError(f"{self._label}: {self._doc['factory']} does not take"
                                        f" {self._doc['kwargs']!r}: {error}") from error  # fmt: skip
        else:
            model = unpack(self.format, self.data, allowed, self._label)
        if chosen is not None:
            chosen.load_into(model)
        return model

    @property
    def _label(self) -> str:
        return f"architecture {self.name!r} version {self.version}"

    def _attached(self) -> str:
        return read_blob(self._warehouse, self._doc["_tdb"]["blob"], self._label).decode(errors="replace")

    def _chosen(self, params: Any) -> ParameterSet | None:
        from tensordb_data.params.parameter_set import ParameterSet

        if isinstance(params, Query):
            params = self.db.select(params)
        if isinstance(params, Selection) and params.query.collection == "params":
            params = params.first()
        if params is not None and not isinstance(params, ParameterSet):
            raise QueryError(f"params= is a parameter set, or a Selection or Query of db.params; found {params!r:.200}")
        return params


@dataclass(frozen=True, kw_only=True)
class Built(OptionGroup):
    """What is made of a checkpoint before it is scored: the model that an architecture builds, or its state alone.

    Raises:
        QueryError: A value is malformed, or both `architecture` and `part` are given.
        NotAllowedError: `allow` is not a list of packages, modules and functions.
    """

    architecture: Selection[Architecture] | None = None
    """The architecture into which the parameters are loaded. None for the state of the checkpoint."""
    allow: Sequence[str] = ()
    """What the architecture may import and run, see `Architecture.build`."""
    part: str = "model"
    """Without an architecture: the part of the checkpoint."""

    def _check(self, written: Written) -> None:
        Allow(self.allow, written("allow"))
        if self.architecture is not None:
            query = getattr(self.architecture, "query", None)
            if not isinstance(self.architecture, Selection) or self.architecture.query.collection != "architectures":
                raise QueryError(f"{written('architecture')} is a selection of architectures; found {query!r:.200}")
            if self.part != "model":
                raise QueryError(f"{written('part')} is for a state without {written('architecture')}: give one")
        if not isinstance(self.part, str) or not self.part:
            raise QueryError(f"{written('part')} is the name of a part; found {self.part!r:.200}")

    def of(self, checkpoint: ParameterSet) -> Any:
        """The model with the parameters of a checkpoint, or its state."""
        if self.architecture is None:
            return checkpoint.load(self.part)
        return self.architecture.first().build(allow=self.allow, params=checkpoint)


class Architectures(Collection[Architecture]):
    """`db.architectures`. Each name has versions. Without a sort, the newest version of a name comes first."""

    def __init__(self, db: Facade) -> None:
        super().__init__(db, "architectures", Architecture)

    def save(
        self,
        name: str,
        model: Any = None,
        *,
        factory: str | None = None,
        kwargs: Mapping[str, Any] | None = None,
        tags: Sequence[str] = (),
        **fields: Any,
    ) -> ObjectId:
        """Saves an architecture. If the name exists, this adds a version.

        Args:
            name: The name.
            model: A Keras model (its configuration, without weights), a `torch.export.ExportedProgram` or an
                `onnx.ModelProto` (both with weights), or the path of a `.pt2` or `.onnx` file.
            factory: Instead of a model, the function or class that makes it: `"mypkg.nets:cnn"`. It is not imported
                now. The source of its module is stored beside it, for the record.
            kwargs: The arguments of the factory, as plain data.
            tags: Tags of this version.
            fields: Further fields, which a query can use.

        Returns:
            The `_id` of this version.

        Raises:
            ArchitectureError: The architecture cannot be stored. The message says what can.
            QueryError: A tag is not a non-empty string.
            StorageError: The blob store failed; nothing was saved.
        """
        if not isinstance(name, str) or not name:
            raise ArchitectureError(f"an architecture is named by a non-empty string; found {name!r}")
        if (model is None) == (factory is None) or (kwargs is not None and factory is None):
            raise ArchitectureError('give either a model, or factory="module:callable" with its kwargs={...}')
        if isinstance(tags, str):
            raise QueryError(f"tags is a list of strings; found the string {tags!r}")
        document: dict[str, Any] = {
            "_id": ObjectId(), "name": name, "version": 0, "tags": clean_tags(tags) if tags else [],
            "created": dt.datetime.now(dt.timezone.utc), **_extra(fields),
        }  # fmt: skip
        data: bytes | None
        if factory is not None:
            module, _ = split(factory)
            if module == "__main__":
                raise ArchitectureError(f"{factory!r} is of the program that runs now, where nobody else finds it;"
                                        " move it into a module")  # fmt: skip
            source = module_source(module)
            document |= {"format": FACTORY, "factory": factory, "kwargs": plain(dict(kwargs or {}), _refusal("kwargs"))}
            data = source.encode() if source else None
        else:
            document["format"], data = pack(model)
        document["_tdb"] = {"p": self._warehouse.project}
        self._insert(document, data)
        return document["_id"]  # type: ignore[no-any-return]

    def _insert(self, document: dict[str, Any], data: bytes | None) -> None:
        search_index(self._warehouse, self.name).add_entities([document])
        mongo = self._warehouse.index["architectures"]

        def number(session: Any = None) -> None:
            scope = {"_tdb.p": self._warehouse.project, "name": document["name"]}
            last = mongo.find_one(scope, {"version": 1}, sort=[("version", -1)], session=session)
            document["version"] = 1 + (last["version"] if last else 0)
            mongo.insert_one(document, session=session)

        for _ in range(_ATTEMPTS):
            try:
                if data is None:
                    number()
                else:
                    write_blob(self._warehouse, document, "architectures", data, number)
                return
            except DuplicateKeyError:  # another has taken this version
                continue
        raise ConnectError(f"architecture {document['name']!r}: {_ATTEMPTS} attempts to save it met other savers")

    def entities(self, docs: Sequence[Mapping[str, Any]]) -> list[Architecture]:
        return [Architecture(self.db, doc) for doc in docs]

    def update_selected(self, selection: BoundQuery, update: Mapping[str, Any]) -> int:
        changes = clean_update(update)
        fixed = sorted({path.split(".")[0] for paths in changes.values() for path in paths} & _FIXED)
        if fixed:
            raise QueryError(f"update: {fixed[0]!r} of an architecture stays as it was saved; save a new version")
        return self.write_selected(selection, changes)


_RESERVED = frozenset(("_id", "_tdb", "version", "format", "created", "source", "data"))
_FIXED = frozenset(("name", "version", "format", "factory", "kwargs", "created"))


def _extra(fields: Mapping[str, Any]) -> dict[str, Any]:
    taken = sorted(_RESERVED & set(fields))
    if taken:
        raise ArchitectureError(f"{', '.join(map(repr, taken))}: this name is taken; use another")
    return plain(dict(fields), _refusal("fields"))  # type: ignore[no-any-return]


def _refusal(what: str) -> Any:
    return lambda message: ArchitectureError(f"{what}: {message}")
