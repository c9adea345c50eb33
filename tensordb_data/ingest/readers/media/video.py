"""Folders of video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tensordb_data.ingest.readers.media.folder import MediaFolder, Part
from tensordb_data.ingest.registry import VIDEO
from tensordb_data.schema import Array, Field, Scalar, Video
from tensordb_data.schema.media.frames import frame_size, frame_times, table_of
from tensordb_data.schema.media.video import TABLE

if TYPE_CHECKING:
    from tensordb_data.ingest.given import Given


def open_video(given: Given) -> VideoFolder:
    """A folder of video, or a list or glob of videos."""
    return VideoFolder(given)


class VideoFolder(MediaFolder):
    """Video: fields `video`, `path`, `fps`, `frames`, `duration`, `width`, `height`, and what folders and tables say.

    `video_packets` has the time of each frame, so that a clip finds its frames without a look through the whole file.
    A video of one frame has no rate and no duration: both are 0.
    """

    column = "video"
    what = "video"
    suffixes = VIDEO
    unread = (".wmv", ".asf", ".3gp", ".rm", ".vob")

    @property
    def facts(self) -> Mapping[str, Field]:
        return {"fps": Scalar("float"), "frames": Scalar("int"), "duration": Scalar("float"), "width": Scalar("int"),
                "height": Scalar("int"), self.column + TABLE: Array("int64", (None, 2), optional=True)}  # fmt: skip

    def field_of(self, parts: Sequence[Part]) -> Field:
        return Video()

    def read(self, part: Part) -> tuple[bytes, Mapping[str, Any]]:
        data = self._given.files.read(part.files[0])
        times = frame_times(data)
        height, width = frame_size(data)
        frames, duration = len(times.pts), times.duration
        return data, {
            "fps": frames / duration if duration else 0.0,
            "frames": frames,
            "duration": duration,
            "width": width,
            "height": height,
            self.column + TABLE: table_of(data, times),
        }
