"""A finished model as a program that needs none of our code: ONNX, and torch.export's pt2.

Both take features in natural units, in batches of any size, and are compared with the module they were made of before
they are handed out. What their makers write of places in source code, which are paths of one machine, is taken out.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import StageError
from core.interop.agreement import apart
from core.interop.outgoing import check_packages
from core.model.patches import PatchSpec

OPSET = 18
"""Version of ONNX's operators; ONNX Runtime knows them from 1.14 on."""
BATCHES = (1, 2, 5)
"""Batch sizes that a program is tried with."""
TOLERANCE = 1e-4
"""Largest difference of an output, in shares of the largest output where that is above 1."""
INLINE = 1_500_000_000
"""Bytes of weights above which ONNX keeps them in a file of their own: its format ends at two gigabytes."""
Outputs = Sequence[Tensor]


def write_program(module: nn.Module, spec: PatchSpec, file: Path) -> float:
    """Write ``module`` as torch.export's program; gives the largest difference from it that was seen.

    Raises:
        StageError: if the program disagrees with the module.
    """
    program = _traced(module, spec)
    torch.export.save(program, file)
    with _quiet():
        loaded = torch.export.load(file).module()
    return _compared(module, spec, lambda x: _several(loaded(x)), "the program of torch.export")


def write_onnx(module: nn.Module, spec: PatchSpec, file: Path, outputs: Sequence[str]) -> float:
    """Write ``module`` as ONNX; gives the largest difference from it that ONNX Runtime showed.

    Raises:
        UserError: if a package is missing.
        StageError: if a part of the model has no counterpart in ONNX, or the two disagree.
    """
    check_packages("onnx")
    import onnxruntime

    program, large = _traced(module, spec), sum(w.nbytes for w in module.state_dict().values()) > INLINE
    with _quiet():
        try:
            made = torch.onnx.export(
                program,
                (_example(spec),),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=["x"],
                output_names=list(outputs),
            )
        except torch.onnx.errors.OnnxExporterError as error:
            first = str(error).strip().partition("\n")[0]
            raise StageError(
                f"this model cannot be written as ONNX: {first}; `--to torch-export` gives a program as well"
            ) from error
        assert made is not None, "with dynamo there is a program"
        made.save(file, external_data=large)
    _clean(file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return _compared(
        module, spec, lambda x: [torch.from_numpy(y) for y in session.run(None, {"x": x.numpy()})], "ONNX Runtime"
    )


def _traced(module: nn.Module, spec: PatchSpec) -> torch.export.ExportedProgram:
    """The operations of ``module`` on batches of any size, without places in source code."""
    with _quiet():
        # A batch of one would fix the batch size at one.
        shapes = ({0: torch.export.Dim("batch")},)
        program = torch.export.export(module, (_example(spec),), dynamic_shapes=shapes, strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def _clean(file: Path) -> None:
    """Take out of an ONNX file what tells of the machine, and call the free axis by its name."""
    import onnx

    model = onnx.load(file, load_external_data=False)
    graph = model.graph
    free = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output, *graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            axis.dim_param = axis.dim_param.replace(free, "batch") if axis.dim_param else axis.dim_param
        del value.metadata_props[:]
    for part in (model, graph, *graph.node, *graph.initializer):
        del part.metadata_props[:]
        part.ClearField("doc_string")
    onnx.save(model, file)


@torch.no_grad()
def _compared(module: nn.Module, spec: PatchSpec, other: Callable[[Tensor], Outputs], whose: str) -> float:
    """The largest difference between the outputs of ``module`` and those of ``other``, over several batch sizes."""
    rng, largest = torch.Generator().manual_seed(0), 0.0
    mean, std = module.get_buffer("mean"), module.get_buffer("std")
    for batch in BATCHES:
        x = mean + std * torch.randn(batch, spec.channels, *spec.input_shape, generator=rng)
        for ours, theirs in zip(_several(module(x)), other(x), strict=True):
            off = apart(ours, theirs)
            if not off <= TOLERANCE:  # NaN is no agreement either.
                raise StageError(
                    f"{whose} gives other outputs than the model it was made of: off by {off:.1e} at a batch of "
                    f"{batch}, where {TOLERANCE:.0e} is allowed; nothing was written"
                )
            largest = max(largest, off)
    return largest


def _example(spec: PatchSpec) -> Tensor:
    return torch.zeros(2, spec.channels, *spec.input_shape)


def _several(found: Any) -> Outputs:
    return found if isinstance(found, (tuple, list)) else (found,)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings of torch's own making."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
