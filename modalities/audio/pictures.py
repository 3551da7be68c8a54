"""Spectrograms as people see and hear them."""

import io
from typing import Any

import numpy as np
import soundfile
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad
from torchaudio.functional import griffinlim

from core.modality import Media
from modalities.audio.spectrogram import EMPHASIS, Framing, band_centres, filters

Array = NDArray[Any]
ABSOLUTE = (-16.0, 4.0)
"""Natural logarithms of energy between silence and full scale."""
RELATIVE = (-9.0, 9.0)
"""The same about the mean of a clip."""
LOUDNESS = 0.5
"""Peak of a sound that is made from a spectrogram."""
ITERATIONS = 32
"""Rounds in which Griffin and Lim's algorithm finds phases."""
WIDTH, HEIGHT, DPI = 3.0, 2.0, 80
"""Inches of a picture, and its pixels per inch."""


def shown(x: Array, framing: Framing, *, absolute: bool) -> list[Media]:
    """A spectrogram (1, frames, bands) as a PNG with axes, and as a sound; frames of NaN are blank, and not heard."""
    heard = x[0][~np.isnan(x[0]).any(axis=1)]
    return [
        Media("image", ".png", _picture(x[0], framing, absolute=absolute)),
        Media("sound", ".flac", _sound(heard, framing)),
    ]


def _picture(x: Array, framing: Framing, *, absolute: bool) -> bytes:
    frames, bands = x.shape
    low, high = ABSOLUTE if absolute else RELATIVE
    seconds = frames * framing.shift / framing.rate
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI)
    axes = figure.add_axes((0.17, 0.2, 0.8, 0.75))
    axes.imshow(x.T, origin="lower", aspect="auto", cmap="magma", vmin=low, vmax=high, extent=(0, seconds, 0, bands))
    axes.set_xlabel("seconds", fontsize=7, labelpad=1)
    axes.set_ylabel("Hz", fontsize=7, labelpad=1)
    centres = np.array(band_centres(framing))
    wanted = [hz for hz in (125, 250, 500, 1000, 2000, 4000, 8000, 16000) if centres[0] <= hz <= centres[-1]]
    places = np.interp(wanted, centres, np.arange(bands) + 0.5)
    axes.set_yticks(places, [str(hz) for hz in wanted])
    axes.tick_params(labelsize=6, length=2, pad=1)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def _sound(x: Array, framing: Framing) -> bytes:
    """A FLAC file of what the spectrogram may have been made from."""
    wave = invert(torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)), framing).numpy()
    out = io.BytesIO()
    soundfile.write(out, wave, framing.rate, format="FLAC", subtype="PCM_16")
    return out.getvalue()


def invert(x_TM: Tensor, framing: Framing) -> Tensor:
    """A waveform (S,) with about the log-mel spectrogram (frames, bands) (Griffin and Lim 1984); peak one half."""
    banks = filters(framing, x_TM.device)
    # Each point of the spectrum takes the mean density of the bands it lies in.
    density = x_TM.clamp(-30, 30).exp() / banks.sum(0).clamp_min(1e-6)
    power = density @ banks.T / banks.sum(1).clamp_min(1e-6)
    if framing.kaldi:
        angle = torch.arange(banks.shape[0]) * (2 * torch.pi / framing.points)
        power = power / (1 + EMPHASIS**2 - 2 * EMPHASIS * torch.cos(angle))
    # A transform reaches beyond either end by half its points; so long at least has what it is given to be.
    shortest = framing.points // (2 * framing.shift) + 2
    power = pad(power, (0, 0, 0, max(0, shortest - len(x_TM))))
    wave: Tensor = griffinlim(
        power.T,
        torch.hann_window(framing.window),
        framing.points,
        framing.shift,
        framing.window,
        power=2.0,
        n_iter=ITERATIONS,
        momentum=0.99,
        length=None,
        rand_init=False,
    )
    wave = wave[: max(1, len(x_TM) - 1) * framing.shift]
    return wave / wave.abs().max().clamp_min(1e-9) * LOUDNESS
