"""The thumbnails of a block, in one answer: a hundred of them would wait for the six connections of a browser."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from starlette.responses import Response

from tensordb_data.errors import QueryError, TensorDBError
from tensordb_data.schema import Array, Image
from tensordb_data.ui.parts import pictures
from tensordb_data.ui.parts.asked import asked
from tensordb_data.ui.parts.links import id_of

if TYPE_CHECKING:
    from tensordb_data.samples.sample import Sample
    from tensordb_data.ui.view import View

_MOST = 200
_SIDE = 160
_TYPES = {"image/jpeg": 1, "image/png": 2}
_AS_IT_IS = 64_000  # bytes of an image that is sent as it is stored


def thumbs(view: View) -> Response:
    """`./thumbs`: for each id in `id=`, four bytes of length, one of type, and so many bytes.

    The type is 1 for a JPEG, 2 for a PNG, and 0 for a text that says what is wrong.

    Raises:
        QueryError: No field is named, or too many ids.
    """
    name = view.one("field")
    asked(view).blob(name)
    ids = [id_of(text, "sample") for text in view.many("id", _MOST)]
    if not ids:
        raise QueryError("id= names the samples")
    found = {sample.id: sample for sample in view.db.data.find({"_id": {"$in": ids}}, fields=[name])}
    parts = []
    for id in ids:
        data, kind = _thumb(view, found[id], name) if id in found else (b"", 0)
        parts += [struct.pack("<IB", len(data), kind), data]
    return view.tagged(Response(b"".join(parts), media_type="application/octet-stream"))


def _thumb(view: View, sample: Sample, name: str) -> tuple[bytes, int]:
    field = sample.blobs.get(name)
    try:
        pictures.check_bytes(sample.stored_bytes(name))
        if isinstance(field, Array):
            array = sample[name]
            if not pictures.slices_of(array.shape):
                return b"", 0
            with pictures.decoding:
                return pictures.picture(array, pictures.slices_of(array.shape) // 2, most=_SIDE), 2
        if isinstance(field, Image):
            data = sample.encoded(name)
            kind = pictures.media_type(data)
            return (data, _TYPES[kind]) if kind is not None and len(data) <= _AS_IT_IS else (b"", 0)
    except TensorDBError as error:
        return view.window.redact(error).encode(), 0
    return b"", 0
