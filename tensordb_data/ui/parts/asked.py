"""Which samples an address asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tensordb_data.errors import NotFoundError
from tensordb_data.schema import Array, BlobField, Image, Scalar
from tensordb_data.ui.parts.links import parsed, parsed_sort

if TYPE_CHECKING:
    from tensordb_data.api.selection import Selection
    from tensordb_data.samples.sample import Sample
    from tensordb_data.schema import Field
    from tensordb_data.ui.view import View

_CAPTIONS = 2


@dataclass(frozen=True)
class Asked:
    """Samples of one dataset, or of all of them."""

    dataset: str
    filter: dict[str, Any]
    """That of the query box."""
    sort: list[str]
    selection: Selection[Sample]
    fields: Mapping[str, Field]
    """Those of the schema; of several datasets, of all of them."""

    @property
    def scalars(self) -> dict[str, Scalar]:
        """The fields that are values in the index."""
        return {name: field for name, field in self.fields.items() if isinstance(field, Scalar)}

    @property
    def pictures(self) -> list[str]:
        """The blobs that may be shown as pictures, images first."""
        images = [name for name, field in self.fields.items() if isinstance(field, Image)]
        arrays = [name for name, field in self.fields.items() if isinstance(field, Array) and _is_picture(field)]
        return [*images, *arrays]

    @property
    def captions(self) -> list[str]:
        """The fields that are shown under a thumbnail."""
        names = list(self.scalars)
        first = [name for name in ("label", "class", "name", "key") if name in names]
        return [*first, *(name for name in names if name not in first)][:_CAPTIONS]

    def blob(self, name: str) -> BlobField:
        """A field that is a blob.

        Raises:
            NotFoundError: There is none of this name.
        """
        found = self.fields.get(name)
        if not isinstance(found, BlobField):
            known = ", ".join(name for name, field in self.fields.items() if isinstance(field, BlobField)) or "none"
            raise NotFoundError(f"dataset {self.dataset!r} has no blob {name!r}; its blobs: {known}")
        return found


def _is_picture(field: Array) -> bool:
    return field.shape is None or len(field.shape) in (2, 3, 4)


def asked(view: View, q: str | None = None) -> Asked:
    """What the address asks for.

    Args:
        view: The request.
        q: The text of the query box, in place of that of the address.

    Raises:
        QueryError: The filter is refused, or is no JSON.
        NotFoundError: There is no such dataset.
    """
    dataset, sort = view.one("dataset"), view.many("sort")
    fields = fields_of(view, dataset)
    filter = parsed(view.one("q") if q is None else q)
    own = {"dataset": dataset} if dataset else {}
    whole = {"$and": [own, filter]} if own and "dataset" in filter else {**own, **filter}
    return Asked(dataset, filter, sort, view.db.data.find(whole, sort=parsed_sort(sort)), fields)


def fields_of(view: View, dataset: str) -> Mapping[str, Field]:
    """The fields of a dataset; without a name, of all.

    Raises:
        NotFoundError: There is no such dataset.
    """
    datasets = view.db.warehouse.datasets
    if not dataset:
        schemas = datasets.schemas(sorted(datasets.versions()))
        return {name: field for schema in schemas.values() for name, field in schema.items()}
    found = datasets.schemas([dataset])
    if dataset not in found:
        known = sorted(datasets.versions())
        raise NotFoundError(
            f"there is no dataset {dataset!r} in project {view.db.project!r}; there are: {', '.join(known) or 'none'}"
        )
    return found[dataset]
