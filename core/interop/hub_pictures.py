"""What makes inputs of pictures and frames, as the libraries of hubs describe it."""

from typing import Any

from core.interop.subject import Subject

BICUBIC = 3
"""Pillow's number of the interpolation."""
CUT_FIRST = (
    "The library scales a picture before it cuts, maeflow cuts before it scales: pixels differ by rounding, and at the "
    "borders of the crop by what lies beyond them."
)


def processors(subject: Subject) -> dict[str, dict[str, Any]]:
    """What makes inputs of pictures or frames; nothing where transformers cannot do as evaluation does."""
    crop, size = subject.crop, subject.spec.input_shape[-2:]
    if subject.info.units != "unit" or crop is None or subject.spec.channels not in (1, 3):
        return {}
    if not crop.squeezed and size[0] != size[1]:  # transformers scales by the short side, whatever the crop's aspect.
        return {}
    whole = {"height": size[0], "width": size[1]}
    common = {
        "do_resize": True,
        "size": whole if crop.squeezed else {"shortest_edge": round(size[0] / crop.share)},
        "resample": BICUBIC,
        "do_center_crop": not crop.squeezed,
        "crop_size": whole,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(subject.record.statistics.mean),
        "image_std": list(subject.record.statistics.std),
        "do_convert_rgb": subject.spec.channels == 3,
    }
    if len(subject.spec.grid) == 2:
        return {"preprocessor_config.json": {"image_processor_type": "ViTImageProcessor", **common}}
    return {
        "preprocessor_config.json": {"image_processor_type": "VideoMAEImageProcessor", **common},
        "video_preprocessor_config.json": {"video_processor_type": "VideoMAEVideoProcessor", **common},
    }


def about_pictures(subject: Subject, *, made: bool) -> list[str]:
    """What users should know of pictures, a sentence each; ``made`` says whether the library makes inputs of them."""
    if subject.info.units != "unit" or not made:
        return ["Pictures or sound become inputs by what `preprocessing.json` says; the library has no such steps."]
    if subject.crop is not None and subject.crop.squeezed:
        return []
    return [CUT_FIRST]
