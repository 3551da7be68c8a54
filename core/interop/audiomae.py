"""facebookresearch/AudioMAE: MAE's names, one channel of time by mel, and positions of a grid that is not square."""

from dataclasses import replace

from torch import Tensor

from core.errors import NotThis
from core.interop.facebook_mae import TARGETS, FacebookMae, fixed_grid, has_plain_names, is_spectrogram
from core.interop.foreign import Checkpoint, Foreign, Hint, Preprocessing
from core.interop.limits import Limits

MEAN, STD = -4.2677393, 4.5689974
"""Of AudioSet's log-mel energies; that code divides by twice the standard deviation."""
OVERLAPPING = (101, 12)
"""The grid of its patches of 16 x 16, 10 apart, on 1024 x 128."""
SWIN = (
    "its decoder attends within shifted windows with a learned bias for each relative position (Swin), for which no "
    "decoder here has a place; the encoder is taken over, and pretraining goes on with a decoder drawn anew"
)


class AudioMae(FacebookMae):
    """Huang et al. 2022, the authors' code. Of its decoders the plain one (``decoder_mode 0``) is taken over."""

    name = "facebookresearch/AudioMAE"
    target = "audiomae"

    def claims(self, checkpoint: Checkpoint) -> bool:
        """By what MAE's own code cannot be: one channel on a grid that is not square, or a decoder of windows."""
        return has_plain_names(checkpoint) and is_spectrogram(checkpoint.state)

    def read(self, checkpoint: Checkpoint, hint: Hint | None = None) -> Foreign:
        """Encoder, and a plain decoder or a head where there is one."""
        if fixed_grid(checkpoint.state["pos_embed"]) == OVERLAPPING:
            raise NotThis("its patches overlap (16 x 16, 10 apart), which patches here cannot")
        windows = any("relative_position" in name for name in checkpoint.state)
        if not windows:
            return super().read(checkpoint, hint)
        decoder = {name: value for name, value in checkpoint.state.items() if name.startswith(("decoder_", "mask_to"))}
        encoder = {name: value for name, value in checkpoint.state.items() if name not in decoder}
        read = super().read(Checkpoint(checkpoint.name, encoder, path=checkpoint.path), hint)
        return with_leftover(read, decoder)

    def inputs(self, channels: int) -> Preprocessing | None:
        """AudioSet's statistics, as all of its models have them until they are tuned on something else."""
        return Preprocessing("log-mel", (MEAN,), (2 * STD,), "as AudioMAE's recipes for AudioSet have it")

    def limits(self, model: Foreign) -> Limits:
        """One channel, two axes, heads on the mean."""
        return Limits(
            (2,),
            cls_token=True,
            channels=1,
            pools=("mean",),
            one_ratio=True,
            square_patch=True,
            targets=TARGETS,
            norm_eps=1e-6,
        )


def with_leftover(read: Foreign, decoder: dict[str, Tensor]) -> Foreign:
    """``read``, and the weights of a decoder that is not taken over."""
    return replace(read, leftover=(*read.leftover, *decoder), notes=(*read.notes, SWIN))
