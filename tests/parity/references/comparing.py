"""What all parity tests do: random weights, files, the same inputs and masks, and the largest difference."""

import json

import torch
from safetensors.torch import save_file

from core.config import DecoderConfig, ModelConfig
from core.interop import building
from core.interop.files import open_checkpoint
from core.interop.foreign import Hint
from core.interop.layouts import LAYOUTS, recognise
from core.model.masking import split_by_score
from core.model.patches import PatchSpec, gather_tokens

TOLERANCE = 1e-9


def shaken(model, seed=1):
    """``model`` in float64 with no weight at its first value: norms, biases, tokens and positions count."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
    return model


def fixed(model, names, grid, prefix=1):
    """``model`` with MAE's fixed tables of ``grid`` for its parameters ``names``."""
    from core.model.positions import sincos

    with torch.no_grad():
        for name in names:
            table = model.get_parameter(name)
            table.zero_()
            table[0, prefix:] = sincos(grid, table.shape[2])
    return model


def opened(folder, state, config=None, processor=None, wrapped="model", name="checkpoint"):
    """``state`` out of a file: of torch.save, or of safetensors where there is a configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.clone() for key, value in state.items()}
    if config is None:
        path = folder / f"{name}.pth"
        torch.save({wrapped: state, "epoch": 3} if wrapped else state, path)
        return open_checkpoint(path, path.name)
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return open_checkpoint(folder, folder.name)


def read(checkpoint, hint=None, leftover=()):
    """The model in ``checkpoint``, which exactly one layout claims; nothing is left over but ``leftover``."""
    claiming = [layout for layout in LAYOUTS if layout.claims(checkpoint)]
    assert [type(layout) for layout in claiming] == [type(recognise(checkpoint))]
    foreign = claiming[0].read(checkpoint, hint)
    assert set(foreign.leftover) == set(leftover)
    return foreign


def hint(spec, width, heads, inner=64, inner_heads=2):
    """What a recipe says of such a model."""
    decoder = DecoderConfig(width=inner, heads=inner_heads)
    return Hint(ModelConfig(width=width, heads=heads, decoder=decoder), PatchSpec(*spec))


def drawn(spec, seed=2, batch=3, ratio=0.5):
    """Inputs (B, C, ...), and a mask."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, spec.channels, *spec.input_shape, generator=generator, dtype=torch.float64)
    noise = torch.rand(batch, spec.count, generator=generator, dtype=torch.float64)
    return x, noise, split_by_score(noise, int(spec.count * ratio))


def order_of(mask):
    """All patches, the visible ones first."""
    return torch.cat([mask.keep_BK, mask.masked_BM], dim=1)


def hidden_in(mask, count):
    """(B, N) bool: which patches are hidden."""
    return torch.zeros(len(mask.keep_BK), count, dtype=torch.bool).scatter(1, mask.masked_BM, value=True)


def tokens(foreign, x):
    """Our encoder's normalised tokens (B, prefix + N, D) of whole inputs."""
    with torch.no_grad():
        return building.encoder(foreign)(foreign.geometry.patchify(x))


def predictions(foreign, x, mask, grid_order=False):
    """Our predictions (B, M, P) for the hidden patches, in the mask's order or the grid's."""
    with torch.no_grad():
        found = building.autoencoder(foreign)(foreign.geometry.patchify(x), mask, mask.masked_BM)
    return gather_tokens(found, mask.masked_BM.argsort(dim=1)) if grid_order else found


def logits(foreign, x):
    """Our logits in float64."""
    model = building.classifier(foreign)
    model.head.register_forward_hook(lambda _, __, output: seen.append(output))
    seen = []
    with torch.no_grad():
        model.classify(x)
    return seen[0]


def agree(what, theirs, ours, tolerance=TOLERANCE):
    """Assert that both are equal up to ``tolerance``, and not for being trivial."""
    assert theirs.shape == ours.shape
    assert theirs.std() > 1e-3
    gap = float((theirs - ours).abs().max())
    print(f"{what}: {gap:.1e}")
    assert gap <= tolerance
