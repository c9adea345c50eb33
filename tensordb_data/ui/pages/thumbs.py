"""The thumbnails of a block, in one answer: a hundred of them would wait for the six connections of a browser."""

from __future__ import annotations

import struct
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

from starlette.responses import Response

from tensordb_data.errors import MissingExtraError, NotFoundError, QueryError
from tensordb_data.table.thumbnails import Thumbnail, thumbnails_of
from tensordb_data.ui.parts import pictures
from tensordb_data.ui.parts.asked import asked
from tensordb_data.ui.parts.links import id_of
from tensordb_data.ui.parts.stored import blob_key

if TYPE_CHECKING:
    from tensordb_data.samples.sample import Sample
    from tensordb_data.ui.view import View

_MOST = 200
_SIZE = 160
_TYPES = {"image/jpeg": 1, "image/png": 2}


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
    samples = {sample.id: sample for sample in view.db.data.find({"_id": {"$in": ids}}, fields=[name])}
    found = _packed(view, [samples[id] for id in ids if id in samples], name)
    nothing = struct.pack("<IB", 0, 0)
    data = b"".join(found.get(id, nothing) for id in ids)
    return view.tagged(Response(data, media_type="application/octet-stream"))


def thumb(view: View) -> Response:
    """`./thumb`: one of them, where there are no scripts.

    Raises:
        NotFoundError: There is no such sample, or it has no such picture.
    """
    name = view.one("field")
    samples = view.db.data.find({"_id": id_of(view.one("id"), "sample")}, fields=[name]).head(1)
    found = _packed(view, samples, name)
    packed = found.get(samples[0].id, b"\0" * 5) if samples else b"\0" * 5
    kind = {number: media for media, number in _TYPES.items()}.get(packed[4])
    if kind is None:
        raise NotFoundError(packed[5:].decode() or "there is no such picture")
    return view.tagged(Response(packed[5:], media_type=kind))


def _packed(view: View, samples: Sequence[Sample], name: str) -> dict[Hashable, bytes]:
    """What is sent of each sample, by its id; those that were sent before are kept in memory."""
    kept = view.window.thumbs
    keys = {sample.id: blob_key(view, sample, name) for sample in samples}
    found: dict[Hashable, bytes] = {id: data for id, key in keys.items() if (data := kept.get(key)) is not None}
    missing = [sample for sample in samples if sample.id not in found]
    if missing:
        with pictures.decoding:
            for one in _made(missing, name):
                error = "" if one.error is None else view.window.redact(ValueError(one.error))
                data = one.data or error.encode()
                packed = struct.pack("<IB", len(data), _TYPES[one.media] if one.data else 0) + data
                found[one.id] = packed
                if one.data:
                    kept.put(keys[one.id], packed)
    return found


def _made(samples: Sequence[Sample], name: str) -> list[Thumbnail]:
    try:
        return thumbnails_of(samples, name, _SIZE)
    except MissingExtraError as error:
        if len(samples) == 1:
            return [Thumbnail(samples[0].id, "image/png", b"", 0, 0, str(error))]
    return [one for sample in samples for one in _made([sample], name)]  # small images need no OpenCV
