"""zarr v3 folders with checksums."""

import os
import shutil
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dynamics.ensemble.contents import Contents, Stored, blocks, impossible
from dynamics.extras import need
from dynamics.whole_file import explained


def write(path: Path, contents: Contents) -> None:
    """Write a folder, whole or not at all. Every chunk is compressed with zstd and carries a CRC-32C checksum.

    A folder of this name is replaced in two renamings: a kill between them leaves none.
    """
    zarr, codecs = need("zarr", "io"), need("zarr.codecs", "io")
    partial = path.with_name(f".tmp-{os.getpid()}-{threading.get_native_id()}-{path.name}")
    old = partial.with_name(f"{partial.name}-old")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a dead process that had our number
        group = zarr.open_group(partial, mode="w-", zarr_format=3)
        pieces = [codecs.ZstdCodec(level=3), codecs.Crc32cCodec()]
        for stored in contents:
            _put(group, stored, contents, pieces)
            del stored
        group.attrs.update(plain_json(contents.attributes()))
        with warnings.catch_warnings():  # zarr: not in the specification yet; xarray warns without it
            warnings.filterwarnings("ignore", "Consolidated metadata", category=UserWarning)
            zarr.consolidate_metadata(partial, zarr_format=3)
        _sync(partial)
        if path.exists():
            os.replace(path, old)
        os.replace(partial, path)
        _sync_one(path.parent)
    except OSError as error:
        if error.errno is None or not str(error.filename or partial).startswith(str(partial)):
            raise
        raise explained(error, path, contents.bytes) from error
    finally:
        if old.exists() and not path.exists():
            os.replace(old, path)
        for left in (partial, old):
            shutil.rmtree(left, ignore_errors=True)


def _put(group: Any, stored: Stored, contents: Contents, pieces: list[Any]) -> None:
    """One variable, from its numbers to the disk."""
    array, attributes = stored.array, dict(stored.attributes)
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8").astype(np.dtypes.StringDType())
    labels = contents.labels_of(stored)
    if labels:
        attributes["coordinates"] = labels
    made = group.create_array(
        stored.name,
        shape=array.shape,
        dtype=array.dtype,
        chunks=blocks(array.shape, array.dtype.itemsize, 2**23),
        compressors=pieces,
        fill_value=np.nan if array.dtype.kind == "f" else None,
        attributes=plain_json(attributes),
        dimension_names=stored.dims,
        config={"write_empty_chunks": True},  # so that a chunk that is not there is missing
    )
    made[...] = array


def plain_json(attributes: dict[str, Any]) -> dict[str, Any]:
    """Numbers as JSON has them."""
    return {name: value if isinstance(value, str) else value.tolist() for name, value in attributes.items()}


def read(path: Path) -> Iterator[Stored | str]:
    """Every variable as it was stored, or in words why it cannot be read; at last the attributes of the whole, under ""."""
    zarr = need("zarr", "io")
    try:
        group = zarr.open_group(path, mode="r")
        arrays = sorted(group.arrays())
    except Exception as error:  # a damaged folder: whatever the library stumbles over
        yield f"cannot be opened ({error})"
        return
    for name, array in arrays:
        try:
            missing = array.nchunks - array.nchunks_initialized
            if missing:
                raise ValueError(f"{missing} of {array.nchunks} chunks are missing")
            yield _got(name, array)
        except Exception as error:
            yield f"variable {name!r} cannot be read ({error})"
    yield Stored("", (), np.zeros(0), dict(group.attrs))


def _got(name: str, stored: Any) -> Stored:
    if impossible(stored.shape, stored.dtype.itemsize, stored.nbytes_stored()):
        raise ValueError(f"shape {stored.shape} in {stored.nbytes_stored()} bytes")
    array = np.asarray(stored[...])
    if array.dtype.kind in "TU":  # a text without dimensions comes back as U
        array = np.char.encode(array.astype(object).astype(str), "utf-8")
    attributes = {key: value for key, value in stored.attrs.items() if key != "coordinates"}
    return Stored(name, stored.metadata.dimension_names or (), array, attributes)


def _sync(folder: Path) -> None:
    """Put every file of a folder on the disk."""
    for at, _, files in os.walk(folder):
        for name in files:
            _sync_one(Path(at, name))
        _sync_one(Path(at))


def _sync_one(path: Path) -> None:
    if os.name == "nt":
        return
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
