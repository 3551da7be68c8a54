"""What people read in forms."""

import pytest

from core.request import STAGES
from flows.typed import pipeline_flow, stage_flow

MODALITIES = ("image", "video", "audio", "medical")


def blocks(flow):
    """Every settings block of a form."""
    schema = flow.parameters.model_dump(exclude_unset=True)
    return {
        "": schema["properties"],
        **{k: d["properties"] for k, d in schema["definitions"].items() if "properties" in d},
    }


@pytest.mark.parametrize("modality", MODALITIES)
def test_fields_are_called_what_recipes_call_them(modality):
    for flow in (pipeline_flow(modality), *(stage_flow(modality, stage) for stage in STAGES)):
        found = blocks(flow)
        assert {"PretrainConfig", "MaskConfig", "DecoderConfig"} <= found.keys()
        # Without a title of its own, Prefect's second interface shows a block's class in place of its name.
        wrong = {(where, key) for where, fields in found.items() for key, one in fields.items() if one["title"] != key}
        assert not wrong


@pytest.mark.parametrize("modality", MODALITIES)
def test_every_field_has_its_help(modality):
    flow = pipeline_flow(modality)
    classes = flow.parameters.model_dump(exclude_unset=True)["definitions"]
    for where, fields in blocks(flow).items():
        for key, one in fields.items():
            # A block that is described in its class's own words has them there.
            shown = one if "description" in one else classes[one["$ref"].rpartition("/")[2]]
            assert shown["description"], (where, key)
