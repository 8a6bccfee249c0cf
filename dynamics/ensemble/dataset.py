"""Labelled results: in memory for xarray, or in one file that xarray opens."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dynamics.ensemble import netcdf_file, zarr_folder
from dynamics.ensemble.contents import CHECKSUMS, Contents, digest, digest_of_attributes
from dynamics.ensemble.contents import Variable as Variable
from dynamics.extras import need

CHILD = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from pathlib import Path
from dynamics.ensemble.dataset import faults
print(json.dumps(faults(Path(sys.argv[2]))))
"""


def to_xarray(coordinates: Iterable[Variable], variables: Iterable[Variable], attributes: dict[str, Any]) -> Any:
    """The `xarray.Dataset` that `write` and `xarray.open_dataset` would give."""
    xarray = need("xarray", "io")
    contents = Contents(coordinates, variables, attributes)
    arrays = {}
    for stored in contents:
        array = stored.array
        arrays[stored.name] = (
            stored.dims,
            np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array,
            stored.attributes,
        )
    whole = contents.attributes()
    whole.pop("coordinates", None)
    dataset = xarray.Dataset(arrays, attrs=whole)
    return dataset.set_coords(contents.labels)


def write(
    path: str | Path,
    coordinates: Iterable[Variable],
    variables: Iterable[Variable],
    attributes: dict[str, Any],
    format: Literal["netcdf", "zarr"] = "netcdf",
) -> Path:
    """Write a result, whole or not at all, holding one variable at a time in memory; what was there is replaced.

    "netcdf": one NetCDF-4 file; "zarr": a zarr v3 folder. All data carry checksums, and the attribute `checksums` the SHA-256
    of every variable. The same input gives the same bytes.

    **Raises:** `ValueError` naming the variable whose name, dimensions, type or attributes do not fit; `OSError` naming the
    file where the disk does not take it.
    """
    if format not in ("netcdf", "zarr"):
        raise ValueError(f"format must be 'netcdf' or 'zarr', got {format!r}")
    path, contents = Path(path), Contents(coordinates, variables, attributes)
    {"netcdf": netcdf_file.write, "zarr": zarr_folder.write}[format](path, contents)
    return path


def problems_of(path: str | Path) -> list[str]:
    """Read a written result whole: what is damaged or missing, by name; empty where all is as written.

    A NetCDF file is read in a process of its own, because HDF5 may crash on damaged metadata.
    """
    path = Path(path)
    if path.is_dir():
        return faults(path)
    need("netCDF4", "io")
    if not path.exists():
        return [f"{path}: is missing"]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(sys.path), path],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
    )
    if done.returncode == 0:
        return json.loads(done.stdout)
    last = (done.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
    return [f"{path}: is so damaged that the process which read it ended with code {done.returncode} ({last})"]


def faults(path: Path) -> list[str]:
    """`problems_of` in this process."""
    found, digests, promised = [], {}, None
    for stored in (zarr_folder if path.is_dir() else netcdf_file).read(path):
        if isinstance(stored, str):
            found.append(f"{path}: {stored}")
        elif stored.name:
            digests[stored.name] = digest(stored)
        else:
            promised = stored.attributes.pop(CHECKSUMS, None)
            digests[""] = digest_of_attributes(stored.attributes)
        del stored
    if found:
        return found
    try:
        promised = json.loads(promised or "")
        names = sorted(promised.keys() | digests.keys())
    except (ValueError, AttributeError):
        return [f"{path}: attribute {CHECKSUMS} is missing or damaged"]
    return [
        f"{path}: {f'variable {name!r}' if name else 'attributes of the whole'}: not as written"
        for name in names
        if promised.get(name) != digests.get(name)
    ]
