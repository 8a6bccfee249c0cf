"""What users of other packages would write for the same workloads."""

import importlib
import importlib.metadata
import os


def version(*packages: str) -> str:
    """Names and versions of packages."""
    return ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)


def missing(*packages: str) -> str | None:
    """Why a peer that needs these packages cannot race; None where it can."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            return f"{package} cannot be imported ({error}); pip install 'dynamics[bench]'"
    return None


def blas_threads() -> str:
    """How many threads NumPy's products may use."""
    count = os.environ.get("OPENBLAS_NUM_THREADS", "all")
    return f"{count} BLAS thread" + ("" if count == "1" else "s")
