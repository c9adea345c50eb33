"""NIfTI and DICOM files that tests make themselves."""

from __future__ import annotations

import gzip
import io
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

SERIES = generate_uid(entropy_srcs=["series"])


def dicom(pixels: npt.NDArray[Any], place: float | None = 0.0, number: int = 1, **tags: Any) -> bytes:
    """A DICOM file of pixels [rows, columns] or [frames, rows, columns]; its slice lies at (1, 2, `place`)."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(place), str(number)])
    file = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))  # type: ignore[arg-type]
    file.SOPClassUID, file.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    file.PatientName, file.PatientID = "Mustermann^Erika", "4711"
    file.SeriesInstanceUID, file.StudyInstanceUID, file.Modality = SERIES, generate_uid(entropy_srcs=["study"]), "CT"
    file.InstanceNumber = number
    file.PixelSpacing, file.SliceThickness = [0.5, 0.25], 2.0
    if place is not None:
        file.ImagePositionPatient, file.ImageOrientationPatient = [1, 2, place], [1, 0, 0, 0, 1, 0]
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    if pixels.ndim == 3:
        file.NumberOfFrames = len(pixels)
    file.Rows, file.Columns = pixels.shape[-2:]
    file.BitsAllocated = file.BitsStored = 8 * pixels.dtype.itemsize
    file.HighBit, file.PixelRepresentation = file.BitsStored - 1, int(pixels.dtype.kind == "i")
    file.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(file, name, value) if value is not None else delattr(file, name)
    out = io.BytesIO()
    pydicom.dcmwrite(out, file, enforce_file_format=True)
    return out.getvalue()


def nifti(values: npt.NDArray[Any], *, packed: bool = False, version: int = 1) -> bytes:
    """A NIfTI file, written by nibabel, with voxels of 2 x 3 x 4 mm."""
    image, header = (nibabel.Nifti1Image, nibabel.Nifti1Header) if version == 1 else (
        nibabel.Nifti2Image, nibabel.Nifti2Header)  # fmt: skip
    order = ">" if values.dtype.byteorder == ">" else "<"
    made = header(endianness=order)
    made.set_data_dtype(values.dtype)
    data = bytes(image(values, np.diag([2.0, 3.0, 4.0, 1.0]), made).to_bytes())
    return gzip.compress(data, mtime=0) if packed else data
