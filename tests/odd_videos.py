"""Videos that are broken, and videos that are odd and right, made with real encoders."""

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

RATE = 20


def ramp(count, size=(64, 48), start=0):
    """``count`` frames (H, W, 3) of (width, height): as bright as their number says, one corner red, one blue."""
    width, height = size
    frames = np.empty((count, height, width, 3), np.uint8)
    for i in range(count):
        frames[i] = level(start + i)
        frames[i, : height // 3, : width // 3] = (230, 20, 20)
        frames[i, -(height // 3) :, -(width // 3) :] = (20, 20, 230)
    return frames


def level(i):
    """Brightness of frame ``i``; steps of 6, so that any codec keeps them apart."""
    return 26 + 6 * (i % 32)


def number(frame):
    """The inverse, from what was decoded."""
    height, width = frame.shape[:2]
    middle = frame[height // 3 + 2 : -(height // 3) - 2, width // 3 + 2 : -(width // 3) - 2]
    return round((float(np.median(middle)) - 26) / 6)


def write(
    path, frames, codec="libx264", *, times=None, form=None, sound=False, pixels="yuv420p", container=None, **options
):
    """A file of ``frames``; ``times`` are their time stamps in hundredths of a second, else RATE a second."""
    with av.open(str(path), "w", format=form, options=container or {}) as out:
        stream = out.add_stream(codec, rate=RATE, options={str(k): str(v) for k, v in options.items()})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pixels
        if times is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 100)
        audio = out.add_stream("aac", rate=8000) if sound else None
        for i, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts = i if times is None else times[i]
            picture.time_base = Fraction(1, RATE) if times is None else Fraction(1, 100)
            out.mux(stream.encode(picture))
        out.mux(stream.encode(None))
        if audio is not None:
            noise(out, audio)


def noise(out, stream, seconds=1):
    """A second of sound."""
    rng = np.random.default_rng(0)
    for i in range(8000 * seconds // 1024):
        frame = av.AudioFrame.from_ndarray(rng.normal(0, 0.1, (1, 1024)).astype(np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = 8000, i * 1024
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))


def turned(path, frames, degrees):
    """A file whose display matrix turns its frames, as telephones write it: an MP4 with the matrix of its track set."""
    write(path, frames)
    data = bytearray(Path(path).read_bytes())
    at = (
        data.index(b"tkhd") + 4 + 40
    )  # Version 0: flags, times, id, duration, reserved, layer, volume; then the matrix.
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    values = [cos, sin, 0, -sin, cos, 0, 0, 0]
    for place, value in enumerate(values):
        data[at + 4 * place : at + 4 * place + 4] = (value * 0x10000).to_bytes(4, "big", signed=True)
    Path(path).write_bytes(data)


def write_odd(folder):
    """Videos that are odd and right: name to (frames to find, upright (width, height))."""
    right = {}

    def add(name, frames, *arguments, size=(64, 48), count=None, **options):
        write(folder / name, frames, *arguments, **options)
        right[name] = (len(frames) if count is None else count, size)

    add("one-frame.mp4", ramp(1))
    add("three-frames.mp4", ramp(3))
    add("tiny.mp4", ramp(24, (33, 17)), pixels="yuv444p", size=(33, 17))
    add("hevc.mp4", ramp(24), "libx265", **{"x265-params": "log-level=none"})
    add("vp9.webm", ramp(24), "libvpx-vp9")
    add("av1.mkv", ramp(24), "libsvtav1", **{"svtav1-params": "lp=1"})
    add("mpeg4.avi", ramp(24), "mpeg4")
    add("mjpeg.mov", ramp(24), "mjpeg", pixels="yuvj420p")
    add("sound.mkv", ramp(24), sound=True)
    add("reordered.mp4", ramp(24), bf=3)
    add("ten-bit.mkv", ramp(24), pixels="yuv420p10le")
    add("webm-called.mp4", ramp(24), "libvpx-vp9", form="webm")
    add("no-suffix", ramp(24), form="mp4")
    add("late-start.mkv", ramp(24), times=[500 + 5 * i for i in range(24)])
    add("ümläut und leer.mp4", ramp(24))
    # Twelve frames at 20 a second, then twelve at 5: shown over three seconds.
    add("variable.mkv", ramp(24), times=[5 * i for i in range(12)] + [60 + 20 * i for i in range(12)])
    for degrees in (90, 180, 270):
        turned(folder / f"turned-{degrees}.mp4", upside(ramp(24), degrees), degrees)
        right[f"turned-{degrees}.mp4"] = (24, (64, 48))
    title(folder / "metadata.mkv", ramp(24))
    right["metadata.mkv"] = (24, (64, 48))
    name = os.fsdecode(b"not-utf8-\xff.mp4")
    write(folder / "plain.mp4", ramp(24))
    (folder / "plain.mp4").rename(folder / name)
    right[r"not-utf8-\xff.mp4"] = (24, (64, 48))
    return right


def upside(frames, degrees):
    """What a camera held at an angle records, so that turning it by ``degrees`` clockwise makes it upright."""
    return np.ascontiguousarray(np.rot90(frames, degrees // 90, axes=(1, 2)))


def title(path, frames):
    """A file with a title that is not UTF-8."""
    with av.open(str(path), "w") as out:
        out.metadata["title"] = "TITLEXX"
        stream = out.add_stream("libx264", rate=RATE)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode(None))
    data = path.read_bytes()
    assert b"TITLEXX" in data
    path.write_bytes(data.replace(b"TITLEXX", b"T\xff\xfe\xe9LXX"))


def write_broken(folder):
    """Files that cannot be used: name to a word of the reason."""
    whole = folder / "whole.mp4"
    write(whole, ramp(60, (160, 120)))
    data = whole.read_bytes()
    write(folder / "whole.avi", ramp(60, (160, 120)), "mjpeg", pixels="yuvj420p")
    avi = (folder / "whole.avi").read_bytes()
    (folder / "whole.avi").unlink()
    whole.unlink()
    write(folder / "front.mp4", ramp(60, (160, 120)), container={"movflags": "faststart"})
    with av.open(str(folder / "sound-only.mp4"), "w") as out:
        noise(out, out.add_stream("aac", rate=8000))
    contents = {
        "truncated.mp4": (data[: len(data) // 2], "moov|Invalid data"),
        "empty.mp4": (b"", "empty file"),
        "random.mkv": (np.random.default_rng(0).bytes(4000), "Invalid data|not a video"),
        "text.mp4": (b"This is no video.\n" * 50, "Invalid data|not a video"),
        "page.mp4": (b"<!doctype html><title>404</title>" * 20, "Invalid data|not a video"),
        "zeros.avi": (bytes(5000), "Invalid data|not a video"),
        "header-only.mp4": (data[:24], "."),
        "picture.mp4": (png(), "picture"),
        "overwritten.avi": (avi[: len(avi) // 3] + b"\xa5" * (len(avi) // 2), "."),
    }
    broken = {"sound-only.mp4": "only sound"}
    for name, (content, reason) in contents.items():
        (folder / name).write_bytes(content)
        broken[name] = reason
    front = (folder / "front.mp4").read_bytes()
    (folder / "front.mp4").unlink()
    (folder / "cut-short.mp4").write_bytes(front[: len(front) * 6 // 10])
    broken["cut-short.mp4"] = "cut short|damaged"
    (folder / "dangling.mp4").symlink_to(folder / "nowhere.mp4")
    (folder / "folder.mp4").mkdir()
    return broken | {"dangling.mp4": "dangling", "folder.mp4": "folder"}


def png():
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(ramp(1)[0]).save(out, "PNG")
    return out.getvalue()
