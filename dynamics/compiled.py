"""Functions compiled ahead of their first call, in a file where wanted: a later process neither traces nor compiles them."""

import contextlib
import hashlib
import json
import pickle
import time
from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import jax.monitoring
import jaxlib.version
from jax.experimental.compilation_cache import compilation_cache

from dynamics.compile_cache import processor
from dynamics.whole_file import whole_file

MAGIC = b"dynamics program 1\n"


class Program:
    """A function compiled for arguments of fixed shapes and dtypes; called like the function.

    - `seconds`: what it took, by name: `trace`, `lower` and `compile`, or `load`.
    """

    def __init__(self, compiled: "jax.stages.Compiled", seconds: dict[str, float], again: Callable | None = None):
        self.compiled, self.seconds, self._again = compiled, seconds, again

    def __call__(self, *arguments) -> Any:
        """What the function returns; `ValueError` for arguments other than those it was compiled for."""
        try:
            return self.compiled(*arguments)
        except TypeError as error:
            raise ValueError(f"the arguments must be as those the program was compiled for: {error}") from error

    def save(self, path: str | PathLike) -> Path:
        """Write the program, for this kind of device under these versions; `load_program` reads it.

        **Raises:** `ValueError` for a program over several devices, one that calls back into Python, one with arguments or
        results whose classes cannot be imported by name, and one that was loaded; `OSError` where the file cannot be written.
        """
        from jax.experimental import serialize_executable

        devices = {device for sharding in jax.tree.leaves(self.compiled.input_shardings) for device in sharding.device_set}
        if len(devices) > 1:
            raise ValueError(f"a program over {len(devices)} devices is not written; compile it for one")
        if self._again is None:
            raise ValueError("the program was loaded from a file: copy that")
        try:
            program, *trees = serialize_executable.serialize(self._again())
            shapes = pickle.dumps([jax.tree.unflatten(tree, range(tree.num_leaves)) for tree in trees])
        except (pickle.PicklingError, AttributeError, TypeError, NotImplementedError, ValueError) as error:
            raise ValueError(
                f"the program cannot be written: {error}; programs that call back into Python and such whose arguments or "
                "results are of classes without an importable name cannot"
            ) from error
        head = {"made": _here(), "shapes": len(shapes), "sha256": hashlib.sha256(shapes + program).hexdigest()}
        with whole_file(Path(path), needed=len(program)) as file:
            file.write(MAGIC + json.dumps(head).encode() + b"\n" + shapes + program)
        return Path(path)


def ahead_of_time(function: Callable, *examples) -> Program:
    """Compile a function now, for arguments like the examples; the call of the program then only runs.

    With `enable_compile_cache` the next process that does this takes the compiled program from the disk and only traces; to
    skip tracing as well, `save` the program and `load_program` it there.

    **Arguments:**

    - `function`: of arrays, or pytrees of them; jitted where it is not yet. Numbers it closes over become part of the program.
    - `examples`: its arguments: arrays, or `jax.ShapeDtypeStruct`s in their place.

    **Raises:** `ValueError` where it is no function; what the function itself raises while it is traced.
    """
    if not callable(function):
        raise ValueError(f"function must be a function of arrays, got {function!r}")
    clock = [time.perf_counter()]
    traced = (function if hasattr(function, "trace") else jax.jit(function)).trace(*examples)
    clock.append(time.perf_counter())
    lowered = traced.lower()
    clock.append(time.perf_counter())
    with _cache_hits() as hits:
        compiled = lowered.compile()
    clock.append(time.perf_counter())
    parts = zip(("trace", "lower", "compile"), clock[:-1], clock[1:], strict=True)

    def again():
        """XLA (jax 0.10) loses functions of a program that it writes after reading it: such a one is compiled anew."""
        if not hits:
            return compiled
        with _no_cache():  # with an option, if only at its usual value, JAX does not give what it has already
            return lowered.compile(compiler_options={"xla_embed_ir_in_executable": False})

    return Program(compiled, {name: end - begin for name, begin, end in parts}, again)


@contextlib.contextmanager
def _cache_hits() -> Iterator[list]:
    """One entry for every program that JAX takes from its compile cache in the block."""
    found = []

    def listen(event: str, **_) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            found.append(event)

    jax.monitoring.register_event_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_listener(listen)


@contextlib.contextmanager
def _no_cache() -> Iterator[None]:
    """JAX without its compile cache."""
    folder = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", folder)
        compilation_cache.reset_cache()


def load_program(path: str | PathLike) -> Program:
    """Read a program that `Program.save` wrote. Reading runs what is in the file: only read files you trust.

    **Raises:** `ValueError` for a file that holds none, is damaged, or was made by other versions or for another kind of
    device; `OSError` where it cannot be read.
    """
    from jax.experimental import serialize_executable

    begin = time.perf_counter()
    data = Path(path).read_bytes()
    magic, rest = data[: len(MAGIC)], data[len(MAGIC) :]
    line, newline, body = rest.partition(b"\n")
    if magic != MAGIC or not newline:
        raise ValueError(f"{path} holds no program that dynamics wrote")
    try:
        head = json.loads(line)
        made, size, digest = head["made"], head["shapes"], head["sha256"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is damaged: compile the program again") from None
    for name, here in _here().items():
        if made.get(name) != here:
            raise ValueError(f"{path} was made for {name} {made.get(name)}, here is {here}: compile the program again")
    if hashlib.sha256(body).hexdigest() != digest:
        raise ValueError(f"{path} is damaged: compile the program again")
    trees = [jax.tree.structure(shape) for shape in pickle.loads(body[:size])]
    compiled = serialize_executable.deserialize_and_load(body[size:], *trees, execution_devices=jax.local_devices()[:1])
    return Program(compiled, {"load": time.perf_counter() - begin})


def _here() -> dict[str, Any]:
    """What a program fits only one of."""
    device = jax.local_devices()[0]
    return {
        "jax": jax.__version__,
        "jaxlib": jaxlib.version.__version__,
        "platform": device.platform,
        "device": device.device_kind,
        "processor": processor(),
        "64-bit": bool(jax.config.jax_enable_x64),  # pyright: ignore[reportAttributeAccessIssue]
    }
