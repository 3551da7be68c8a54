"""The batched spectrograms against those that torchaudio and transformers compute clip by clip."""

import numpy as np
import pytest
import torch
import torchaudio
from torchaudio.compliance import kaldi

from core.config import ComputeConfig
from core.training.devices import configure
from modalities.audio.config import AudioSettings, SpectrogramConfig
from modalities.audio.pictures import invert
from modalities.audio.spectrogram import EPSILON, Framing, band_centres, log_mel


def waves(rate, seconds=1.3, seed=0):
    """Noise, clicks, a glide and something with a large constant, (4, S)."""
    rng = torch.Generator().manual_seed(seed)
    time = torch.arange(int(rate * seconds)) / rate
    clicks = (torch.rand(len(time), generator=rng) < 0.001).float()
    glide = 0.4 * torch.sin(2 * torch.pi * (200 + 900 * time) * time)
    noise = torch.randn(len(time), generator=rng) * 0.05
    return torch.stack([noise, clicks, glide, noise * 0.3 + 0.4])


def by_clip(wave, framing):
    return kaldi.fbank(
        wave[None], htk_compat=True, sample_frequency=framing.rate, use_energy=False, window_type="hanning",
        num_mel_bins=framing.bands, dither=0.0, frame_shift=10,
    )  # fmt: skip


@pytest.mark.parametrize(("rate", "bands"), [(16_000, 128), (8_000, 40), (22_050, 64), (44_100, 128), (11_127, 32)])
def test_a_batch_gives_kaldis_numbers_clip_by_clip(rate, bands):
    framing = Framing.of(AudioSettings(rate=rate, size=(16, bands), patch=(4, 4)))
    batch = waves(rate)
    ours, theirs = log_mel(batch, framing), torch.stack([by_clip(wave, framing) for wave in batch])
    assert ours.shape == theirs.shape
    # Beside a pure glide, bands hold little but rounding errors: these are Kaldi's as well.
    assert (ours - theirs).abs().max() <= 1e-5


def test_a_batch_gives_the_numbers_of_asts_extractor():
    from transformers import ASTFeatureExtractor

    extractor = ASTFeatureExtractor(max_length=128)
    batch = waves(16_000)
    theirs = np.stack([extractor(wave.numpy(), sampling_rate=16_000)["input_values"][0] for wave in batch])
    ours = log_mel(batch, Framing.of(AudioSettings()))[:, :128]
    ours = (ours - extractor.mean) / (2 * extractor.std)
    assert np.abs(ours.numpy() - theirs[:, : ours.shape[1]]).max() <= 1e-3


def test_the_plain_kind_is_torchaudios_mel_spectrogram():
    settings = AudioSettings(size=(16, 64), patch=(4, 4), spectrogram=SpectrogramConfig(kind="mel", low_hz=50))
    batch = waves(16_000)
    plain = torchaudio.transforms.MelSpectrogram(
        16_000, n_fft=400, hop_length=160, n_mels=64, f_min=50.0, f_max=8000.0, center=False
    )
    theirs = plain(batch).transpose(1, 2).clamp_min(EPSILON).log()
    assert (log_mel(batch, Framing.of(settings)) - theirs).abs().max() <= 1e-3


def test_a_clip_does_not_depend_on_its_batch():
    framing = Framing.of(AudioSettings())
    batch = waves(16_000)
    assert torch.equal(log_mel(batch, framing), torch.cat([log_mel(wave[None], framing) for wave in batch]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_numbers():
    configure(ComputeConfig(device="cuda"))  # Lets products round to TF32.
    framing = Framing.of(AudioSettings())
    batch = waves(16_000)
    assert (log_mel(batch.cuda(), framing).cpu() - log_mel(batch, framing)).abs().max() <= 1e-3


def test_frames_and_samples_count_each_other():
    framing = Framing.of(AudioSettings())
    assert (framing.window, framing.shift, framing.points) == (400, 160, 512)
    assert framing.frames(160_000) == 998
    assert framing.frames(399) == 0
    assert all(framing.frames(framing.samples(n)) == n for n in (1, 2, 998, 1024))


def test_a_tone_stands_in_the_band_that_is_named_after_it():
    framing = Framing.of(AudioSettings())
    time = torch.arange(16_000) / 16_000
    for hz in (300.0, 1000.0, 5000.0):
        loudest = log_mel(torch.sin(2 * torch.pi * hz * time)[None], framing)[0].mean(0).argmax()
        assert band_centres(framing)[loudest] == pytest.approx(hz, abs=32, rel=0.03)  # A point is 31 Hz wide.


@pytest.mark.parametrize("kind", ["kaldi", "mel"])
def test_a_sound_made_from_a_spectrogram_has_about_that_spectrogram(kind):
    settings = AudioSettings(rate=8000, size=(96, 40), patch=(4, 4), spectrogram=SpectrogramConfig(kind=kind))
    framing = Framing.of(settings)
    time = torch.arange(framing.samples(96)) / 8000
    wave = 0.3 * torch.sin(2 * torch.pi * (300 + 200 * time) * time) + 0.2 * torch.sin(2 * torch.pi * 1500 * time)
    first = log_mel(wave[None], framing)[0]
    again = log_mel(invert(first, framing)[None], framing)[0][: len(first)]
    first = first[: len(again)]
    inner = slice(8, -8)
    one, other = (x[inner].flatten() for x in (first, again))
    loud = one > one.quantile(0.7)
    assert torch.corrcoef(torch.stack([one[loud], other[loud]]))[0, 1] > 0.8


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"spectrogram": {"high_hz": 9000}}, "above half the rate"),
        ({"spectrogram": {"low_hz": 8000}}, "not below the upper edge"),
        ({"spectrogram": {"shift_ms": 0.01}}, "less than a sample"),
        ({"spectrogram": {"shift_ms": 25}}, "leaves gaps"),
        ({"spectrogram": {"window_ms": 0.5, "shift_ms": 0.4}}, "too short"),
        ({"size": [64, 2], "patch": [4, 2]}, "4 bands or more"),
        ({"store": {"seconds": 1}, "refuse": {"shortest": 1}, "spectrogram": {"window_ms": 900}}, "twice a frame"),
        ({"rate": 96_001}, "use pcm16"),
        ({"finetune": {"noise_db": [40, 10]}}, "least comes first"),
        ({"pretrain": {"mixup": 0.5}}, "no targets"),
        ({"refuse": {"shortest": 0.1}, "spectrogram": {"window_ms": 200}}, "less than a frame"),
        ({"size": [1000, 128]}, "patch"),
    ],
)
def test_settings_that_cannot_be_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        AudioSettings.model_validate(values)
