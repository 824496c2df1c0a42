"""torch.compile: the graph of ``torch.export``, compiled for the host that serves it, at load."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass

from handlers import inductor, program_layers, saving, torch_export
from handlers.errors import IntegrityError, LoadError, one_line
from handlers.foreign import flatten
from handlers.quiet import quiet
from handlers.runtimes import Array, Arrays, ExportRequest, Runtime, as_arrays


class TorchCompile(Runtime):
    """A program of ``torch.export``; option ``cache`` is the folder of what was compiled."""

    suffix = ".pt2"
    precisions = ("fp32", "bf16", "fp16")
    static_precisions = precisions
    options: ClassVar[Mapping[str, Any]] = {"cache": ""}

    def __init__(self, path: Path, device: str, options: Mapping[str, Any]) -> None:
        torch.set_num_threads(options["threads"])
        program = torch_export.load(path)
        if device == "cpu":
            inductor.check_compiler("runtime torch-compile")
        kept = inductor.use_cache(options["cache"])
        self._device, self._path = device, path
        self._dynamic = _dynamic(program)
        self._compiled = _compiled(move_to_device_pass(program, device).module())
        try:
            with quiet():
                self._warm(program, options["batch"])
        # The compiler's own errors and those of the C++ compiler behind it are of many kinds.
        except Exception as error:
            line = one_line(error, 400)
            raise LoadError(
                f"{path.name} cannot be compiled here: {line}; where it could be before, what is "
                f"kept in {kept} may be damaged: remove it"
            ) from error

    def __call__(self, *arrays: Array) -> Arrays:
        return as_arrays(self._run(torch.from_numpy(arrays[0])))

    def named(self, images: Array) -> dict[str, Array]:
        return flatten(self._run(torch.from_numpy(images)))

    def layers(self, images: Array) -> dict[str, Array]:
        # Anew: another graph, for its values in between would not be there once it is compiled.
        program = torch_export.load(self._path)
        module: Any = move_to_device_pass(program, self._device).module()
        names = program_layers.tap(module)
        with quiet(), torch.no_grad():
            found = _compiled(module)(torch.from_numpy(images).to(self._device))
        return dict(zip(names, as_arrays(found), strict=True))

    @classmethod
    def holds(cls, path: Path) -> bool:
        return inductor.package_kind(path) == "program"

    @staticmethod
    def export(request: ExportRequest) -> None:
        program = torch_export.capture(request)
        saving.write(lambda file: torch.export.save(program, file), request.path)

    def _run(self, images: torch.Tensor) -> Any:
        images = images.to(self._device)
        for axis in self._dynamic:
            # An axis of length 1 has code of its own, whatever is said of it.
            if images.shape[axis] > 1:
                # Maybe: a length that equals a number of channels may need code of its own.
                torch._dynamo.maybe_mark_dynamic(images, axis)
        # Freezing asks for no_grad; inference tensors are not for dynamic axes.
        with torch.no_grad():
            return self._compiled(images)

    def _warm(self, program: ExportedProgram, most: int) -> None:
        """Compile for several pictures, for one, and for numbers up to ``most`` that have code of
        their own."""
        images = _example(program)
        self._run(images)
        if 0 in self._dynamic:
            for count in range(1, _largest(program, most) + 1):
                # A copy: code for a view of another tensor would be for such views alone.
                self._run(images[:1].repeat(count, *[1] * (images.ndim - 1)))


def _compiled(module: torch.nn.Module) -> Any:
    # A graph that would fall apart, or sizes that would each get code of their own, are errors.
    return torch.compile(module, fullgraph=True, options={"freezing": True, "compile_threads": 1})


def _example(program: ExportedProgram) -> torch.Tensor:
    """The pictures that the program was captured with; raises IntegrityError."""
    given: Any = program.example_inputs or ((), {})
    positional, keywords = given
    if len(positional) != 1 or keywords or not isinstance(positional[0], torch.Tensor):
        came = ", ".join(program.graph_signature.user_inputs) or "nothing"
        raise IntegrityError(
            f"the program takes {came}, and pictures come as one tensor: export it with "
            "torch.export.export(module, (pictures,))"
        )
    example: torch.Tensor = positional[0]
    return example


def _dynamic(program: ExportedProgram) -> list[int]:
    """The axes of the pictures that vary, as the program has them."""
    shape = _shape(program)
    return [axis for axis, length in enumerate(shape) if isinstance(length, torch.SymInt)]


def _largest(program: ExportedProgram, most: int) -> int:
    """How many of ``most`` pictures the program takes, where their number varies."""
    bound = program.range_constraints[_shape(program)[0].node.expr].upper
    # A program of others may have none.
    return min(int(bound), most) if bound.is_Integer else most


def _shape(program: ExportedProgram) -> Any:
    """The shape of the pictures, with symbols for axes that vary."""
    _example(program)
    (name,) = program.graph_signature.user_inputs
    (node,) = (node for node in program.graph.nodes if node.name == name)
    return node.meta["val"].shape
