"""NetCDF-4 files with checksums."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from dynamics.ensemble.contents import Contents, Stored, blocks, impossible
from dynamics.extras import need
from dynamics.whole_file import explained, whole_file

WIDTH = "_bytes"
"""The suffix of the dimension along the bytes of a text; xarray drops it."""


def write(path: Path, contents: Contents) -> None:
    """Write a file, whole or not at all. The same contents give the same bytes.

    Everything is compressed with zlib and carries Fletcher-32 checksums; what HDF5 gives none (scalars, attributes) is covered
    by the SHA-256 among the attributes.
    """
    netCDF4 = need("netCDF4", "io")
    with whole_file(path) as file:
        with _told(path, file, contents):
            dataset = netCDF4.Dataset(file.name, "w", format="NETCDF4")
        try:
            for stored in contents:
                with _told(path, file, contents):
                    _put(dataset, stored, contents)
                del stored
            with _told(path, file, contents):
                _describe(dataset, contents.attributes())
                dataset.sync()  # a close that fails would leave the file open in HDF5 for good
        except BaseException:
            os.ftruncate(file.fileno(), 0)  # makes room for what is still in the caches
            with suppress(RuntimeError):
                dataset.close()
            raise
        with _told(path, file, contents):
            dataset.close()


def _put(dataset: Any, stored: Stored, contents: Contents) -> None:
    """One variable, from its numbers to the disk."""
    array, dims = stored.array, stored.dims
    if array.dtype.kind == "S":
        dims = (*dims, f"{stored.name}{WIDTH}")
        array = np.frombuffer(array.tobytes(), "S1").reshape(*array.shape, array.dtype.itemsize)
    for dim, size in zip(dims, array.shape, strict=True):
        if dim not in dataset.dimensions:
            dataset.createDimension(dim, size)
    made = dataset.createVariable(
        stored.name,
        array.dtype,
        dims,
        fill_value=np.nan if array.dtype.kind == "f" else None,
        chunksizes=blocks(array.shape, array.dtype.itemsize, 2**20) if dims else None,
        chunk_cache=2**20,  # else every variable keeps its own many MiB until the file is closed
        **({"zlib": True, "complevel": 1, "shuffle": True, "fletcher32": True} if dims else {}),
    )
    made.set_auto_maskandscale(False)
    made.set_auto_chartostring(False)
    if stored.array.dtype.kind == "S":
        made.setncattr("_Encoding", "utf-8")
    labels = contents.labels_of(stored)
    if labels:
        made.setncattr("coordinates", labels)
    _describe(made, stored.attributes)
    made[...] = array


def _describe(owner: Any, attributes: dict[str, Any]) -> None:
    for name, value in attributes.items():
        owner.setncattr(name, value)


@contextmanager
def _told(path: Path, file: IO[bytes], contents: Contents) -> Iterator[None]:
    """An `OSError` with the cause instead of the RuntimeError of HDF5, which does not know it."""
    try:
        yield
    except RuntimeError as error:
        try:
            file.seek(0, os.SEEK_END)
            file.write(bytes(2**20))
            file.flush()
        except OSError as cause:
            raise explained(cause, path, contents.bytes) from error
        raise explained(OSError(errno.EIO, str(error)), path, contents.bytes) from error


def read(path: Path) -> Iterator[Stored | str]:
    """Every variable as it was stored, or in words why it cannot be read; at last the attributes of the whole, under ""."""
    netCDF4 = need("netCDF4", "io")
    try:
        dataset = netCDF4.Dataset(path, "r")
    except (OSError, RuntimeError) as error:
        yield f"cannot be opened ({error})"
        return
    with dataset:
        dataset.set_auto_maskandscale(False)
        dataset.set_auto_chartostring(False)
        size = path.stat().st_size
        for name, variable in dataset.variables.items():
            try:
                yield _got(name, variable, size)
            except Exception as error:  # a damaged file: whatever the libraries stumble over
                yield f"variable {name!r} cannot be read ({error})"
        try:
            yield Stored("", (), np.zeros(0), {name: dataset.getncattr(name) for name in dataset.ncattrs()})
        except Exception as error:
            yield f"attributes cannot be read ({error})"


def _got(name: str, variable: Any, size: int) -> Stored:
    if impossible(variable.shape, variable.dtype.itemsize, size):
        raise ValueError(f"shape {variable.shape} in a file of {size} bytes")
    own = {"_FillValue", "_Encoding", "coordinates"}
    attributes = {key: variable.getncattr(key) for key in variable.ncattrs() if key not in own}
    if variable.shape:
        variable.set_var_chunk_cache(2**20)
    array, dims = np.asarray(variable[...]), variable.dimensions
    if array.dtype == "S1":
        array, dims = array.view(f"S{array.shape[-1]}")[..., 0], dims[:-1]
    return Stored(name, dims, array, attributes)
