"""Recordings that are broken, and recordings that are odd and right: a tone of 440 Hz in all that can be heard."""

import os
from pathlib import Path

import numpy as np
import soundfile

HZ = 440.0


def tone(rate, seconds, channels=1, level=0.5):
    """(n, channels) float32."""
    wave = level * np.sin(2 * np.pi * HZ * np.arange(round(rate * seconds)) / rate)
    return np.repeat(wave[:, None], channels, axis=1).astype(np.float32)


def write_odd(folder):
    """Recordings that must be read; name to (rate, channels, seconds)."""
    made = {}

    def put(name, rate, channels, seconds, subtype=None, form=None, level=0.5):
        soundfile.write(folder / name, tone(rate, seconds, channels, level), rate, subtype=subtype, format=form)
        made[name] = rate, channels, seconds

    put("telephone.wav", 8_000, 1, 1.5)
    put("telephone.au", 8_000, 1, 1.0, "ULAW", "AU")
    put("telephone-adpcm.wav", 8_000, 1, 1.0, "IMA_ADPCM")
    put("radio.wav", 22_050, 2, 2.0)
    put("disc.flac", 44_100, 2, 3.0)
    put("disc.aiff", 44_100, 2, 1.0)
    put("disc.mp3", 44_100, 2, 2.0)
    put("disc.ogg", 44_100, 2, 2.0)
    put("call.opus", 48_000, 1, 2.0, "OPUS", "OGG")
    put("surround.wav", 48_000, 6, 1.0, "PCM_24")
    put("studio.flac", 96_000, 2, 1.0, "PCM_24")
    put("bats.wav", 128_000, 1, 1.0, "FLOAT")
    put("bats.w64", 192_000, 3, 0.5)
    put("shortest.wav", 16_000, 1, 0.1)
    put("long.flac", 16_000, 1, 600.0)
    put("loud.wav", 16_000, 1, 1.0, "FLOAT", level=40.0)
    put("soft.wav", 16_000, 1, 1.0, "PCM_24", level=0.002)
    put("strange-rate.wav", 11_127, 1, 1.0)
    put("eight-bits.wav", 16_000, 1, 1.0, "PCM_U8")
    put("apple.caf", 44_100, 1, 1.0)
    put("large.rf64", 16_000, 1, 1.0)
    put("no-suffix", 16_000, 1, 1.0, "PCM_16", "WAV")
    put("UPPER CASE ü.WAV", 16_000, 1, 1.0)
    put("cafe.flac", 16_000, 1, 1.0)
    (folder / "cafe.flac").rename(folder / "caf\udce9.flac")  # A name that is no UTF-8.
    made["caf\\xe9.flac"] = made.pop("cafe.flac")
    torn = (folder / "telephone.wav").read_bytes()
    (folder / "torn.wav").write_bytes(torn[: len(torn) // 2])  # Its header is believed only as far as there are bytes.
    made["torn.wav"] = 8_000, 1, 0.75
    return made


def write_broken(folder):
    """Files that cannot be used; name to a piece of the reason."""
    rate, sound = 16_000, tone(16_000, 1.0)
    silent = np.zeros_like(sound)
    holes = sound.copy()
    holes[4000:4010] = np.nan
    endless = sound.copy()
    endless[77] = np.inf
    clipped = np.clip(tone(16_000, 1.0, level=8.0), -1, 1)
    opposed = np.concatenate([sound, -sound], axis=1)
    waves = {
        "short.wav": (sound[:800], "too short"),
        "no-samples.wav": (sound[:0], "no sound"),
        "silent.wav": (silent, "all samples are zero"),
        "direct-current.wav": (silent + 0.25, "all samples are the same"),
        "not-a-number.wav": (holes, "NaN or infinite"),
        "infinite.wav": (endless, "NaN or infinite"),
        "clipped.wav": (clipped, "clipped"),
        "opposed.wav": (opposed, "cancel each other out"),
        "too-quiet.wav": (sound * 1e-6, "too quiet"),
    }
    for name, (wave, _) in waves.items():
        soundfile.write(folder / name, wave, rate, subtype="FLOAT")
    reasons = {name: reason for name, (_, reason) in waves.items()}
    kinds = {"PCM_16": "wav", "PCM_24": "flac", "PCM_U8": "wav", "PCM_S8": "aiff", "ULAW": "au", "ALAW": "au"}
    for subtype, suffix in kinds.items():
        soundfile.write(folder / f"clipped-{subtype}.{suffix}", clipped, rate, subtype=subtype)
    for suffix in ("mp3", "ogg"):
        soundfile.write(folder / f"clipped.{suffix}", clipped, rate)
    upward = np.clip(tone(rate, 1.0, level=8.0), -0.1, 1)
    soundfile.write(folder / "clipped-upward.wav", upward, rate, subtype="PCM_U8")
    made = [f"clipped-{subtype}.{suffix}" for subtype, suffix in kinds.items()]
    reasons |= dict.fromkeys([*made, "clipped.mp3", "clipped.ogg", "clipped-upward.wav"], "is clipped")
    reasons |= _torn(folder) | _not_sound(folder, sound)
    return reasons


def _torn(folder):
    """Files of which a part is missing or wrong."""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 32_000).astype(np.float32)
    soundfile.write(folder / "torn.flac", noise, 16_000)
    whole = (folder / "torn.flac").read_bytes()
    (folder / "torn.flac").write_bytes(whole[: len(whole) // 2])
    (folder / "spoiled.flac").write_bytes(whole[:9000] + os.urandom(400) + whole[9400:])
    soundfile.write(folder / "header-only.ogg", noise, 16_000, subtype="VORBIS", format="OGG")
    (folder / "header-only.ogg").write_bytes((folder / "header-only.ogg").read_bytes()[:2000])
    stream = bytearray(whole)
    stream[21], stream[22:26] = stream[21] & 0xF0, bytes(4)  # As encoders leave it that write into a pipe.
    (folder / "streamed.flac").write_bytes(stream)
    wav = bytearray((folder / "silent.wav").read_bytes())
    wav[24:28] = (1).to_bytes(4, "little")
    (folder / "one-hertz.wav").write_bytes(wav)
    (folder / "header-torn.wav").write_bytes(bytes(wav[:20]))
    return {
        "torn.flac": "decoded|breaks off",
        "spoiled.flac": "decoded|breaks off",
        "streamed.flac": "does not say how long it is",
        "header-only.ogg": "decoded|no sound|too short",
        "one-hertz.wav": "claims 1 samples per second",
        "header-torn.wav": "decoded",
    }


def _not_sound(folder, sound):
    """Files that are something else."""
    (folder / "empty.wav").write_bytes(b"")
    (folder / "page.wav").write_text("<html>404 not found</html>" * 50)
    (folder / "random.mp3").write_bytes(bytes(np.random.default_rng(1).integers(0, 200, 5000, dtype=np.uint8)))
    (folder / "picture.flac").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4)
    (folder / "folder.wav").mkdir()
    (folder / "dangling.wav").symlink_to(folder / "nowhere.wav")
    soundfile.write(folder / "compressed.wav", sound, 16_000)
    data = bytearray(Path(folder / "compressed.wav").read_bytes())
    data[20:22] = (0x0161).to_bytes(2, "little")  # Windows Media Audio.
    (folder / "compressed.wav").write_bytes(data)
    return {
        "empty.wav": "empty file",
        "page.wav": "decoded",
        "random.mp3": "no frame of sound",
        "picture.flac": "decoded",
        "folder.wav": "folder",
        "dangling.wav": "dangling link",
        "compressed.wav": "decoded",
    }
