"""AOTInductor: a graph of ``torch.export`` compiled to machine code at build, for the CPU."""

from __future__ import annotations

import io
import json
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.utils import _pytree as pytree

from handlers import inductor, isa, saving
from handlers.errors import ExportError, IntegrityError, RuntimeUnavailable, one_line
from handlers.foreign import flatten
from handlers.quiet import quiet
from handlers.runtimes import Array, Arrays, ExportRequest, Runtime, as_arrays

# Where a package keeps its one model, and what is kept of that beside the library.
_MODEL = f"{inductor.PACKAGE}model/"
_TOLD = "_metadata.json"
_METADATA = f"wrapper{_TOLD}"
# Keys of a package's metadata: torch's own, and the one of ours.
_VECTORS, _MACHINE, _DEVICE = "AOTI_CPU_ISA", "AOTI_MACHINE", "AOTI_DEVICE_KEY"
_NEEDS = "MARSMITH_CPU_FLAGS"
_CHECK = "AOTI_RUNTIME_CHECK_INPUTS"


class AotInductor(Runtime):
    """A package of ``torch._inductor.aoti_compile_and_package``.

    Option ``isa`` is the processor that it is compiled for: "x86-64-v3" (AVX2), "x86-64-v4"
    (AVX-512), or "" for the better of the two that the building host has.
    """

    suffix = ".pt2"
    devices = ("cpu",)
    precisions = ("fp32", "bf16", "fp16", "int8")
    int8_requires = ("torchao",)
    static_precisions = precisions
    shown_by = "torch-compile"
    # TorchInductor takes folders into its hashes; compiler, torch and processor count as well.
    reproducible = "never"
    options: ClassVar[Mapping[str, Any]] = {"isa": ""}

    def __init__(self, path: Path, device: str, options: Mapping[str, Any]) -> None:
        torch.set_num_threads(options["threads"])
        try:
            records = _read(path)
        except RuntimeError as error:
            line = one_line(error)
            raise IntegrityError(f"{path.name} is no package of AOTInductor: {line}") from error
        _check_host(records, path.name)
        self._pairs = False
        # torch would unpack it into a folder that stays behind when the worker is killed; 2.11 can
        # do nothing else, and every version before 2.15 is taken to be like it.
        unpacked = torch.__version__ >= "2.15"
        with tempfile.TemporaryDirectory(prefix="marsmith-aotinductor-") as folder:
            for name, content in records.items() if unpacked else ():
                place = Path(folder, name)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(content)
            try:
                # What torch._inductor.aoti_load_package calls, after importing the whole compiler.
                self._model = torch._C._aoti.AOTIModelPackageLoader(
                    folder if unpacked else str(path), "model", False, 1, -1
                )
            except (RuntimeError, ValueError) as error:
                line = one_line(error)
                raise IntegrityError(f"{path.name} does not load here: {line}") from error

    def __call__(self, *arrays: Array) -> Arrays:
        with torch.inference_mode():
            return as_arrays(self._model.boxed_run([torch.from_numpy(arrays[0])]))

    def named(self, images: Array) -> dict[str, Array]:
        batch = torch.from_numpy(images)
        if len(batch) > 1:
            return self._checked(batch)
        if self._pairs:
            return self._paired(batch)
        try:
            return self._checked(batch)
        except RuntimeError:
            # The check takes no single picture where the batch may vary, nor one of a wrong size.
            found = self._paired(batch)
            self._pairs = True
            return found

    def _paired(self, batch: torch.Tensor) -> dict[str, Array]:
        both = self._checked(torch.cat([batch, batch]))
        return {name: output[:1] for name, output in both.items()}

    def _checked(self, batch: torch.Tensor) -> dict[str, Array]:
        """Outputs under their names in the Python module, of which the package has the form.

        Compiled code reads beyond a tensor of another shape than its own, so that its check of
        inputs is asked for; that it was is read once, at the first call.
        """
        os.environ[_CHECK] = "1"
        try:
            with torch.inference_mode():
                outputs = self._model.boxed_run([batch])
        finally:
            del os.environ[_CHECK]
        _, form = self._model.get_call_spec()
        return flatten(pytree.tree_unflatten(outputs, pytree.treespec_loads(form)))

    @classmethod
    def holds(cls, path: Path) -> bool:
        return inductor.package_kind(path) == "compiled"

    @staticmethod
    def export(request: ExportRequest) -> None:
        from handlers import torch_export

        inductor.check_compiler("a build for runtime aotinductor")
        inductor.use_cache("")
        level = _level(request.options["isa"])
        program = torch_export.capture(request)

        def package(file: io.BytesIO) -> None:
            try:
                with quiet(), torch.no_grad(), _architecture(level), _vectors(level):
                    torch._inductor.aoti_compile_and_package(
                        program, package_path=file, inductor_configs=_settings(level)
                    )
            # Its own errors and those of the C++ compiler behind it are of many kinds.
            except Exception as error:
                line = one_line(error, 400)
                raise ExportError(f"AOTInductor cannot compile this model: {line}") from error

        saving.write(package, request.path)

    @staticmethod
    def finish(request: ExportRequest) -> None:
        level = _level(request.options["isa"])
        _rewrite(request.path, isa.LEVELS.get(level, isa.here()))


def _level(wanted: str) -> str:
    """The instruction set to compile for; "" where the machine is none of those we know."""
    if not wanted:
        return isa.best() or ""
    if wanted not in isa.LEVELS:
        raise ExportError(f"isa {wanted!r}: accepted are {', '.join(isa.LEVELS)}")
    if not isa.LEVELS[wanted] <= isa.here():
        raise ExportError(f"isa {wanted}: this host's processor has no {wanted} to prove it with")
    return wanted


def _settings(level: str) -> dict[str, Any]:
    from torch._inductor import config

    vectors = {"cpp.simdlen": isa.WIDTHS[level]} if level else {}
    # Both tell of the machine that built it. torch 2.11 writes neither and has no such setting.
    telling = ("enable_line_tables", "enable_frame_pointer")
    return {
        **vectors,
        "freezing": True,
        # Otherwise the number of threads of the building process is in the code.
        "cpp.dynamic_threads": True,
        **{f"aot_inductor.{name}": False for name in telling if hasattr(config.aot_inductor, name)},
    }


@contextmanager
def _architecture(level: str) -> Iterator[None]:
    """Let torch compile for ``level`` and not for this very processor."""
    from torch._inductor import config, cpp_builder

    if not level:
        yield
    elif hasattr(config.cpp, "march"):
        with config.patch({"cpp.march": level}):
            yield
    else:
        # torch 2.11 always says -march=native, and has no setting for it.
        native = cpp_builder._get_optimization_cflags

        def flags(*given: Any, **named: Any) -> tuple[list[str], list[str]]:
            compiler, linker = native(*given, **named)
            compiler[compiler.index("march=native")] = f"march={level}"
            return compiler, linker

        cpp_builder._get_optimization_cflags = flags
        try:
            yield
        finally:
            cpp_builder._get_optimization_cflags = native


@contextmanager
def _vectors(level: str) -> Iterator[None]:
    """Let torch compile for x86-64-v4 with what that level has.

    Of all instruction sets of 512 bits, which ``cpp.simdlen`` does not tell apart, torch takes the
    one with most (AMX, VNNI), and with the plain one bf16 where the building host has it.
    """
    if level != "x86-64-v4":
        yield
        return
    from torch._inductor import cpu_vec_isa

    known = cpu_vec_isa.valid_vec_isa_list
    # Only the one that torch has tried on this host has bf16 among its flags, a new one has not.
    tried = known()
    plain = [each for each in (cpu_vec_isa.VecAVX512(),) if each in tried]
    cpu_vec_isa.valid_vec_isa_list = lambda: plain  # type: ignore[assignment]
    try:
        yield
    finally:
        cpu_vec_isa.valid_vec_isa_list = known


def _read(path: Path) -> dict[str, bytes]:
    """The library and its metadata, by their names; raises RuntimeError."""
    reader = torch._C.PyTorchFileReader(str(path))
    names = [name for name in reader.get_all_records() if name.startswith(_MODEL)]
    found = {name: reader.get_record(name) for name in sorted(names)}
    if not any(name.endswith(".so") for name in found):
        raise RuntimeError("it has no compiled model")
    return found


def _check_host(records: Mapping[str, bytes], name: str) -> None:
    """Refuse a package for another processor; raises RuntimeUnavailable or IntegrityError."""
    try:
        (told,) = (
            json.loads(content) for file, content in records.items() if file.endswith(_METADATA)
        )
        needed = frozenset(told.get(_NEEDS, "").split()) | _flags(told[_VECTORS])
        machine, place = told[_MACHINE], told.get(_DEVICE, "cpu")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{name} does not say which processor it is for: {error}") from error
    if place != "cpu":
        raise RuntimeUnavailable(f"{name} was compiled for {place}: this runtime is of the CPU")
    isa.check(machine, needed, name)


def _flags(vectors: str) -> frozenset[str]:
    """The kernel's names of what torch calls "AVX2" or "AVX512 AVX512_VNNI"."""
    known = {"AVX2": isa.LEVELS["x86-64-v3"], "AVX512": isa.LEVELS["x86-64-v4"]}
    parts = [known.get(each, frozenset({each.lower()})) for each in vectors.split()]
    return frozenset().union(*parts) if platform.machine() == "x86_64" else frozenset()


def _rewrite(path: Path, needed: frozenset[str]) -> None:
    """Leave in the package what is needed to run it, and write down for which processor it is.

    Its C++ source and the library's own messages name folders of the machine that built it.
    """
    records = {}
    for name, content in _read(path).items():
        if name.endswith(".so"):
            records[name] = _without_paths(content)
        elif name.endswith(_METADATA):
            told = {**json.loads(content), _NEEDS: " ".join(sorted(needed))}
            records[name] = json.dumps(told, sort_keys=True).encode()
            # torch 2.11 finds the metadata by the name of the source beside it.
            records[f"{name.removesuffix(_TOLD)}.cpp"] = b""
    saving.records({**records, "archive_format": b"pt2", "archive_version": b"0"}, path)


def _without_paths(library: bytes) -> bytes:
    """Blank the folders of torch and of the cache, which only its error messages mention."""
    folders = [Path(torch.__file__).parents[1], Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])]
    for folder in folders:
        for given in {str(folder), str(folder.resolve())}:
            # As long as it was: nothing else in the library may move.
            library = library.replace(given.encode(), b"." * len(given.encode()))
    return library
