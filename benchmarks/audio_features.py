"""How much faster is a batch of log-mel spectrograms than Kaldi's, clip by clip?

64 clips of 10 s at 16 kHz, AudioMAE's settings, one process, the same threads. A round times all sides; the ratio is
paired by round. The third side does only what nothing can do without, the Fourier transforms and the logarithms, with
torch's own: the ratio to it bounds what batching can gain. Ends with the largest differences between the first two,
beside what Kaldi's own rounding comes to. The clips are noise, or recorded speech where a home of `maeflow demo audio`
is given.

    python benchmarks/audio_features.py [--home HOME] [--rounds N] [--threads N] [--out FILE]
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import soundfile
import torch
from loaders import interval
from torch import Tensor
from torchaudio.compliance import kaldi

from modalities.audio.config import AudioSettings
from modalities.audio.spectrogram import EPSILON, Framing, filters, log_mel

CLIPS, SECONDS = 64, 10


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    framing = Framing.of(AudioSettings())
    waves = recordings(options.home, framing.rate)
    sides = {
        "kaldi clip by clip": lambda: one_by_one(waves, framing),
        "batched": lambda: log_mel(waves, framing),
        "transform and logarithm alone": unavoidable(framing),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(options.rounds + 1):
        for name, side in sides.items():
            seconds = timed(side)
            if number:  # The first round warms up.
                times[name].append(seconds)
    loop, batch, least = times.values()
    ratios = [a / b for a, b in zip(loop, batch, strict=True)]
    bounds = [a / b for a, b in zip(loop, least, strict=True)]
    low, high = interval(ratios)
    result = {
        "clips": f"{CLIPS} of {SECONDS} s at {framing.rate} Hz, {'recorded speech' if options.home else 'noise'}",
        "threads": options.threads,
        "rounds": options.rounds,
        **{f"{name}, ms per clip": round(statistics.median(t) / CLIPS * 1000, 3) for name, t in times.items()},
        "ratio": round(statistics.median(ratios), 2),
        "low": round(low, 2),
        "high": round(high, 2),
        "ratio to transform and logarithm alone": round(statistics.median(bounds), 2),
        **differences(waves, framing),
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, torch {version('torch')}, "
        f"torchaudio {version('torchaudio')}",
    }
    for name, value in result.items():
        print(f"{name:42s} {value}")
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=1) + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", default=None)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", default=None)
    return parser.parse_args()


def recordings(home: str | None, rate: int) -> Tensor:
    """(64, 160000): noise that rises and falls, or the demo's prompts one after the other, played twice as fast."""
    if home is None:
        rng = torch.Generator().manual_seed(0)
        swell = torch.sin(torch.arange(SECONDS * rate) / 3000).square() + 0.05
        return 0.1 * torch.randn((CLIPS, SECONDS * rate), generator=rng) * swell
    files = sorted((Path(home) / "demo" / "languages").rglob("*.wav"))
    parts, missing = [], CLIPS * SECONDS * rate
    for path in files[:: max(1, len(files) // 1200)]:
        wave = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
        parts.append(wave)
        missing -= len(wave)
        if missing <= 0:
            break
    return torch.cat(parts)[: CLIPS * SECONDS * rate].reshape(CLIPS, -1)


def one_by_one(waves: Tensor, framing: Framing) -> Tensor:
    return torch.stack([
        kaldi.fbank(
            wave[None], htk_compat=True, sample_frequency=framing.rate, use_energy=False, window_type="hanning",
            num_mel_bins=framing.bands, dither=0.0, frame_shift=10,
        )
        for wave in waves
    ])  # fmt: skip


def unavoidable(framing: Framing) -> Callable[[], object]:
    """The transforms and logarithms of all clips, clip by clip, on arrays that are there already."""
    frames = framing.frames(SECONDS * framing.rate)
    filled, energies = torch.rand(frames, framing.points), torch.rand(frames, framing.bands)

    def side() -> None:
        for _ in range(CLIPS):
            torch.fft.rfft(filled)
            torch.log(energies)

    return side


def timed(side: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    side()
    return time.perf_counter() - start


def differences(waves: Tensor, framing: Framing) -> dict[str, float]:
    """Largest differences, in natural logarithms, to Kaldi's numbers, and of either side to float64."""
    ours, theirs = log_mel(waves, framing), one_by_one(waves, framing)
    right = torch.cat([in_float64(wave, framing) for wave in waves.split(1)])
    far = (ours - theirs).abs()
    return {
        "largest difference to kaldi": float(far.max()),
        "share of values further off than 1e-3": float((far > 1e-3).double().mean()),
        "largest error of kaldi against float64": float((theirs - right).abs().max()),
        "largest error of ours against float64": float((ours - right).abs().max()),
    }


def in_float64(waves: Tensor, framing: Framing) -> Tensor:
    frames = waves.double().unfold(1, framing.window, framing.shift)
    frames = frames - frames.mean(-1, keepdim=True)
    before = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
    window = torch.hann_window(framing.window, periodic=False, dtype=torch.float64)
    power = torch.fft.rfft((frames - 0.97 * before) * window, n=framing.points).abs().square()
    return (power @ filters(framing, waves.device).double()).clamp_min(EPSILON).log()


if __name__ == "__main__":
    main()
