"""The page of one sample, and its blobs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from tensordb_data.errors import NotFoundError, TensorDBError
from tensordb_data.runs.listing import list_runs
from tensordb_data.schema import Array, Image, Text
from tensordb_data.table.cursors import after, value_of
from tensordb_data.ui.parts import pictures
from tensordb_data.ui.parts.asked import Asked, asked, fields_of
from tensordb_data.ui.parts.links import id_of
from tensordb_data.ui.parts.stored import decoded, stored
from tensordb_data.ui.parts.tails import tail

if TYPE_CHECKING:
    from tensordb_data.api.logs import LogRow
    from tensordb_data.samples.sample import Sample
    from tensordb_data.ui.view import View

_TEXT = 20_000
_HEX = 512
_VALUES = 256
_RUNS = 20
_ROWS = 100
_SANDBOX = {"Content-Security-Policy": "sandbox", "Content-Disposition": "attachment"}


@dataclass(frozen=True)
class Shown:
    """How a blob of a sample is shown."""

    name: str
    kind: str
    nbytes: int
    wrong: str | None = None
    """What is the matter with it, in place of the rest."""
    text: str | None = None
    cut: bool = False
    slices: int = 0
    channels: int = 0
    about: str = ""


def sample(view: View) -> Response:
    """`./sample`: one sample, its fields and blobs, and those before and after it in the query that led here."""
    found = _one(view)
    fields = fields_of(view, found.dataset)
    what = replace(asked(view), fields=fields)
    before, behind = _neighbours(what, found)
    names = [name for name in fields if name not in found.blobs]
    others = [name for name in found if name not in fields and name not in ("_id", "dataset", "tags", "provenance")]
    provenance = found.get("provenance")
    return view.page(
        "sample.html", sample=found, fields=fields, names=names, others=others, before=before, behind=behind,
        blobs=[_shown(view, found, name) for name in found.blobs], asked=what, q=view.one("q"),
        provenance=provenance if isinstance(provenance, dict) else {},
        missing=[name for name, field in fields.items() if name not in found and name not in found.blobs],
    )  # fmt: skip


def blob(view: View) -> Response:
    """`./blob`: an image, or a slice of an array as a picture; with `raw=1`, or of another kind, a file to keep.

    Raises:
        NotFoundError: There is no such sample, or no such blob.
        StorageError: It is too large to be shown.
        CorruptBlobError: It is damaged.
    """
    found = _one(view)
    name = view.one("field")
    if name not in found.blobs:
        raise NotFoundError(f"sample {found.id} has no blob {name!r}; its blobs: {', '.join(found.blobs) or 'none'}")
    pictures.check_size(found, name)
    with pictures.decoding:
        if isinstance(found.blobs[name], Array):
            channel = view.whole("channel", 0, 1_000_000) if view.one("channel") else None
            data = pictures.picture(decoded(view, found, name), view.whole("slice", 0, 100_000_000), channel)
        else:
            data = stored(view, found, name)
    kind = None if view.one("raw") else pictures.media_type(data)
    if kind is None:
        return view.tagged(Response(data, media_type="application/octet-stream", headers=_SANDBOX))
    return view.tagged(Response(data, media_type=kind))


def array(view: View) -> Response:
    """`./array`: an array of a row of a log, as a picture.

    Raises:
        NotFoundError: There is no such row.
        QueryError: The row has no such array.
        StorageError: It is no picture, or too large to be shown.
    """
    row = view.db.logs.find({"_id": id_of(view.one("id"), "row")}).first()
    name = view.one("field")
    if name not in row:
        raise NotFoundError(f"the row has no {name!r}")
    about = row[name].get("array") if isinstance(row[name], dict) else None
    pictures.check_shape(about.get("shape") if isinstance(about, dict) else None)
    with pictures.decoding:
        data = pictures.picture(row.array(name), view.whole("slice", 0, 100_000_000))
    return view.tagged(Response(data, media_type="image/png"))


def logged(view: View) -> Response:
    """`./logged`: rows of logs that name a sample, under the names by which the newest runs have logged samples."""
    found = _one(view)
    newest = list_runs(view.db.warehouse, view.db.runs(sort=[("began", -1)]).query, metrics=False)[:_RUNS]
    names = sorted({name for run in newest for name, _, _ in tail(view, run["name"]).entities})
    rows = []
    if names:
        named: list[dict[str, Any]] = [{f"{name}.id": found.id, f"{name}.collection": "data"} for name in names]
        rows = view.db.logs.find({"$or": named}, limit=_ROWS).all()
    return view.page("logged.html", sample=found, names=names, rows=[(row, _under(row, found)) for row in rows])


def _under(row: LogRow, sample: Sample) -> list[str]:
    """The names under which a row has a sample."""
    return [name for name, value in row.items() if isinstance(value, dict) and value.get("id") == sample.id]


def _one(view: View) -> Sample:
    id = id_of(view.one("id"), "sample")
    found = view.db.data.find({"_id": id}).head(1)
    if not found:
        raise NotFoundError(f"there is no sample {id} in project {view.db.project!r}: it was deleted, perhaps")
    return found[0]


def _shown(view: View, sample: Sample, name: str) -> Shown:
    field, nbytes = sample.blobs[name], sample.stored_bytes(name)
    found = Shown(name, getattr(field, "kind", "blob"), nbytes)
    try:
        pictures.check_size(sample, name)
        if isinstance(field, Array):
            with pictures.decoding:
                array = decoded(view, sample, name)
            shape = " × ".join(map(str, array.shape)) or "a single number"
            about = f"{array.dtype}, {shape}"
            if not pictures.slices_of(array.shape):
                text = str(array.reshape(-1)[:_VALUES].tolist())
                return replace(found, about=about, text=text, cut=array.size > _VALUES)
            channels = array.shape[-1] if array.ndim > 2 and array.shape[-1] in (3, 4) else 0
            return replace(found, about=about, slices=pictures.slices_of(array.shape), channels=channels)
        data = stored(view, sample, name)
        if isinstance(field, Image):
            pictures.media_type(data)
            return replace(found, slices=1)
        if isinstance(field, Text):
            text = data[: 4 * _TEXT].decode(errors="replace")
            return replace(found, text=text[:_TEXT], cut=len(text) > _TEXT or len(data) > 4 * _TEXT)
        return replace(found, text=_hex(data[:_HEX]), cut=len(data) > _HEX)
    except TensorDBError as error:
        return replace(found, wrong=view.window.redact(error))


def _hex(data: bytes) -> str:
    lines = [data[at : at + 16] for at in range(0, len(data), 16)]
    return "\n".join(
        f"{16 * number:06x}  {line.hex(' '):<47}  {''.join(chr(byte) if 32 <= byte < 127 else '.' for byte in line)}"
        for number, line in enumerate(lines)
    )


def _neighbours(what: Asked, sample: Sample) -> tuple[Any, Any]:
    """The ids of the samples before and after one, in the order of the query."""
    bound = what.selection.bound
    order = bound.sort()
    keys = [value_of(sample._doc, name) for name, _ in order]
    found: list[Any] = []
    for way in (-1, 1):
        turned = [(name, way * direction) for name, direction in order]
        cursor = bound.collection.find(bound.filter(after(turned, keys)), {"_id": 1}).sort(turned).limit(1)
        found.append(next((doc["_id"] for doc in cursor), None))
    return found[0], found[1]
