"""Quantisation after training by PyTorch's own pt2e, for the kernels of TorchInductor on x86.

Activations and weights become int8, weights with one scale per output channel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from handlers import torch_export
from handlers.errors import ExportError

if TYPE_CHECKING:
    from handlers.runtimes import ExportRequest


def quantised(module: nn.Module, request: ExportRequest) -> nn.Module:
    """``module`` with int8 layers, ranges from ``request.calibration``; raises ExportError."""
    if not request.calibration:
        raise ExportError("int8 needs calibration pictures, and the request has none")
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    for name in sorted({*request.float_layers, "decode"}):
        quantizer.set_module_name_qconfig(name, None)
    exported: Any = torch_export.export(module, request).module()
    _name_sources(exported.graph)
    prepared = prepare_pt2e(exported, quantizer)
    for pixels in request.calibration:
        prepared(torch.from_numpy(pixels))
    converted: nn.Module = convert_pt2e(prepared)
    move_exported_model_to_eval(converted)
    return converted


def _name_sources(graph: fx.Graph) -> None:
    """Write down of which layer each operation is, for the quantizer finds layers by that alone.

    torch 2.11 does not look at where the operation stands, and would leave every layer in float.
    """
    layers = {
        f"{kind.__module__}.{kind.__qualname__}": kind
        for kind in vars(nn).values()
        if isinstance(kind, type)
    }
    for node in graph.nodes:
        stack = [*node.meta.get("nn_module_stack", {}).values()]
        if node.op == "call_function" and stack and stack[-1][1] in layers:
            place, kind = stack[-1]
            node.meta.setdefault("source_fn_stack", [(place, layers[kind])])
