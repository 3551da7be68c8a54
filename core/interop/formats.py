"""The forms in which a finished model leaves, those of timm and transformers apart: one function each."""

import json
from pathlib import Path

import torch
from safetensors.torch import save as to_safetensors

from core.errors import NotThis, UserError
from core.interop import graphs
from core.interop.agreement import read_again
from core.interop.layout import Target
from core.interop.model_card import Written
from core.interop.own import WHOLE, Own, weights_in
from core.interop.serving import load_classifier, load_encoder
from core.interop.subject import Subject, as_json
from core.model.weights import METADATA
from core.records import read_model
from core.workspace import write_bytes, write_text

WEIGHTS = "model.safetensors"
"""What hubs call a file of weights."""
SAFETENSORS_CODE = """
import json, safetensors
with safetensors.safe_open("FOLDER/model.safetensors", "pt") as file:
    weights = {name: file.get_tensor(name) for name in file.keys()}
    about = json.loads(file.metadata()["maeflow"])  # Its recipe and its record.
"""
ONNX_CODE = """
import numpy, onnxruntime
session = onnxruntime.InferenceSession("FOLDER/model.onnx")
x = numpy.zeros({shape}, numpy.float32)  # Features as above, before they are normalised.
{outputs} = session.run(None, {{"x": x}})
"""
PROGRAM_CODE = """
import torch
model = torch.export.load("FOLDER/model.pt2").module()
{outputs} = model(torch.zeros{shape})  # Features as above, before they are normalised.
"""
STATE_CODE = """
import torch
state = torch.load("FOLDER/{file}", weights_only=True)["model"]
# Or the same from model.safetensors, by safetensors.torch.load_file.
"""


def safetensors(subject: Subject, folder: Path) -> Written:
    """One file under timm's names that says all of itself; with the decoder under the names of the autoencoder.

    Raises:
        UserError: if the decoder is wanted and there is none.
        StageError: if what is read from it again computes something else.
    """
    source = subject.folder / subject.record.weights
    if subject.with_decoder:
        assert subject.model.has_decoder, "it has refused otherwise"
        source = subject.folder / WHOLE
    about = {"recipe": subject.said_recipe, "record": subject.record.model_dump(mode="json")}
    # One entry alone, since safetensors writes several in random order.
    state = weights_in(source, read_model(subject.folder), subject.record)
    data = to_safetensors(state, {METADATA: json.dumps(about, sort_keys=True)})
    write_bytes(folder / WEIGHTS, data)
    notes = ["The names are timm's for the encoder and its head; the metadata hold recipe and record."]
    if subject.with_decoder:
        notes = ["Names begin with `encoder.` (then timm's) and `decoder.`; the metadata hold recipe and record."]
    if subject.segments:
        notes.append("Names that begin with `decoder.` are those of the head that gives masks.")
    checked = read_again(subject, Own(), [folder / WEIGHTS], loose=False)
    return Written("safetensors", SAFETENSORS_CODE, tuple(notes), (checked,))


def onnx(subject: Subject, folder: Path) -> Written:
    """A program for ONNX Runtime and others, with a free batch size.

    Raises:
        UserError: if a package is missing.
        StageError: if the model has no counterpart, or the program disagrees with it.
    """
    outputs = _outputs(subject)
    off = graphs.write_onnx(_module(subject), subject.spec, folder / "model.onnx", outputs)
    code = ONNX_CODE.format(shape=(2, subject.spec.channels, *subject.spec.input_shape), outputs=", ".join(outputs))
    notes = (f"ONNX with operators of version {graphs.OPSET}.", *_about_programs(subject))
    return Written("onnx", _one(code, outputs), notes, (_agreement("ONNX Runtime", off),))


def program(subject: Subject, folder: Path) -> Written:
    """A program of torch.export, with a free batch size.

    Raises:
        StageError: if the program disagrees with the model.
    """
    outputs = _outputs(subject)
    off = graphs.write_program(_module(subject), subject.spec, folder / "model.pt2")
    code = PROGRAM_CODE.format(shape=(2, subject.spec.channels, *subject.spec.input_shape), outputs=", ".join(outputs))
    notes = (f"Written by torch {torch.__version__.partition('+')[0]}.", *_about_programs(subject))
    return Written("pytorch", code, notes, (_agreement("The loaded program", off),))


def state_dict(layout: Target, subject: Subject, folder: Path) -> Written:
    """The file that the code of ``layout`` loads, and the same tensors as safetensors.

    Raises:
        UserError: if the layout has no place for such a model.
        StageError: if what is read from it again computes something else.
    """
    try:
        state = layout.write(subject.model)
        arguments, remarks = layout.config(subject.model), layout.remarks(subject.model)
        norms = layout.limits(subject.model).norms(subject.model)
    except NotThis as reason:
        raise UserError(f"--to {layout.target}: {reason}") from None
    state = {name: value.contiguous() for name, value in state.items()}
    file = f"{layout.target}.pth"
    torch.save({"model": state}, folder / file)  # Tensors alone: whoever loads it needs no trust.
    write_bytes(folder / WEIGHTS, to_safetensors(state))
    if arguments:
        write_text(folder / "arguments.json", as_json(arguments))
    notes = [f"Names and shapes are those of {layout.name}.", *remarks]
    notes += ["`arguments.json` has those of its class."] if arguments else []
    checked = read_again(subject, layout, [folder / file, folder / WEIGHTS], loose=bool(norms))
    return Written("pytorch", STATE_CODE.format(file=file), tuple(notes), (checked,))


def _module(subject: Subject) -> torch.nn.Module:
    if subject.with_decoder:
        raise UserError("programs encode or predict, and have no use for a decoder; leave --with-decoder away")
    return load_encoder(subject.folder) if subject.tuned is None else load_classifier(subject.folder)


def _outputs(subject: Subject) -> tuple[str, ...]:
    return ("features", "patches") if subject.tuned is None else ("logits",)


def _about_programs(subject: Subject) -> tuple[str, ...]:
    axes = ", ".join(str(size) for size in subject.spec.input_shape)
    said = f"`x` is (batch, {subject.spec.channels}, {axes}) in natural units: the program normalises it itself."
    if subject.tuned is None:
        return said, "`features` (batch, width) are the mean of `patches` (batch, patches, width)."
    many = f"(batch, {subject.tuned.target.outputs}{', ' + axes if subject.segments else ''})"
    return said, f"`logits` are {many}; probabilities are what softmax or sigmoid makes of them."


def _agreement(whose: str, off: float) -> str:
    sizes = ", ".join(map(str, graphs.BATCHES))
    return f"{whose} gave the outputs of the model itself at batches of {sizes} (largest difference {off:.1e})."


def _one(code: str, outputs: tuple[str, ...]) -> str:
    """Code that takes one output out of its list."""
    return code.replace("logits = ", "(logits,) = ") if len(outputs) == 1 else code
