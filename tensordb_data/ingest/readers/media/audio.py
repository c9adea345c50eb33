"""Folders of sound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tensordb_data.ingest.readers.media.folder import MediaFolder, Part
from tensordb_data.ingest.registry import AUDIO
from tensordb_data.schema import Audio, Field, Scalar
from tensordb_data.schema.media.sound import sound_info

if TYPE_CHECKING:
    from tensordb_data.ingest.given import Given


def open_audio(given: Given) -> AudioFolder:
    """A folder of sound, or a list or glob of sounds."""
    return AudioFolder(given)


class AudioFolder(MediaFolder):
    """Sound: fields `audio`, `path`, `rate`, `channels`, `frames`, and what folders and tables say."""

    column = "audio"
    what = "sound"
    suffixes = AUDIO
    unread = (".m4a", ".aac", ".wma", ".amr")

    @property
    def facts(self) -> Mapping[str, Field]:
        return {"rate": Scalar("int"), "channels": Scalar("int"), "frames": Scalar("int")}

    def field_of(self, parts: Sequence[Part]) -> Field:
        return Audio()

    def read(self, part: Part) -> tuple[bytes, Mapping[str, Any]]:
        data = self._given.files.read(part.files[0])
        return data, sound_info(data)._asdict()
