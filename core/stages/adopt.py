"""A foreign checkpoint in the place of a stage's own result: its weights for this data, with an account of changes."""

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from core.config import Recipe, TaskKind
from core.errors import NotThis, UserError
from core.interop import building
from core.interop.account import ACCOUNT_FILE, Account
from core.interop.accounting import account_of
from core.interop.adapt import POSITIONS, adapted, with_grid
from core.interop.files import open_checkpoint
from core.interop.foreign import Foreign, Hint, Preprocessing
from core.interop.layouts import recognise
from core.interop.places import fingerprint
from core.model.patches import PatchSpec
from core.model.regrid import geometry_of
from core.model.weights import metadata_of
from core.records import PreparedData, PretrainedEncoder, Statistics, Target, TunedModel
from core.request import Place
from core.stages.beginning import MODEL_FILE
from core.stages.finetune import MODEL_FILE as TUNED_FILE
from core.stages.finetune import require_target
from core.stages.pretrain import ENCODER_FILE
from core.stages.work import Work, live_plugin
from core.workspace import write_bytes, write_text


def adopt(recipe: Recipe, data: PreparedData | None, checkpoint: Place, work: Work) -> PretrainedEncoder:
    """The encoder of ``checkpoint`` for the recipe's data, and its decoder if it has one.

    ``data`` give the input statistics where the checkpoint's own do not apply.

    Raises:
        UserError: if it cannot be read or does not fit, with the reason; or nobody knows its input statistics.
    """
    plugin = live_plugin(recipe, "pretrain", recipe.pretrain.input_shape)
    spec = plugin.patches()
    model = foreign(checkpoint, Hint(recipe.model, spec))
    units, given = plugin.info.units, model.preprocessing
    own = _of_our_kind(given, units)
    whole, changed = adapted(with_final_norm(model), spec, native=own)
    _fits(checkpoint, whole)
    statistics, inputs = _statistics(given if given and given.units == units else None, spec, data, checkpoint)
    account = account_of(checkpoint.name, model, whole, changed, inputs=inputs, wanted=recipe.model)
    _tell(account, work)
    decoder = model.model.decoder if model.has_decoder else recipe.model.decoder
    metadata = metadata_of(recipe)
    write_bytes(work.folder / ENCODER_FILE, to_safetensors(_plain(whole.part("encoder")), metadata))
    if model.has_decoder:
        both = {name: value for name, value in whole.state.items() if name not in whole.head}
        write_bytes(work.folder / MODEL_FILE, to_safetensors(_plain(both), metadata))
    return PretrainedEncoder(
        **work.origin("pretrain", recipe, torch.device("cpu")),
        weights=ENCODER_FILE,
        model=whole.model.model_copy(update={"other_size": recipe.model.other_size, "decoder": decoder}),
        geometry=geometry_of(whole.geometry),
        statistics=statistics,
        data_digest=f"of {checkpoint.name}",
        prepared=data.digest if data else "",
        metrics={},
        norm_pix=model.norm_pix,
        checkpoint=checkpoint.name,
        head=model.outputs,
    )


def adopt_tuned(
    recipe: Recipe, encoder: PretrainedEncoder, labelled: PreparedData, checkpoint: Place, work: Work
) -> TunedModel:
    """The tuned model in ``checkpoint``, whose encoder was adopted as ``encoder``, for the classes of ``labelled``.

    Raises:
        UserError: if its head is not for these classes, or it does not fit.
    """
    target = require_target(labelled)
    if target.task.kind is TaskKind.SEGMENTATION:
        raise UserError(
            f"checkpoint {checkpoint.name}: a head from elsewhere gives no masks here; fine-tune its encoder"
        )
    plugin = live_plugin(recipe, "evaluate", recipe.finetune.input_shape)
    spec = plugin.patches()
    model = foreign(checkpoint, Hint(recipe.model, spec))
    model, head = _with_classes(model, target, checkpoint)
    whole, changed = adapted(model, spec, native=_of_our_kind(model.preprocessing, plugin.info.units))
    whole = _on_grid(whole, spec)
    try:
        classifier = building.classifier(whole)
    except NotThis as reason:
        raise UserError(f"checkpoint {checkpoint.name}: {reason}") from None
    inputs = "as of its encoder"
    _tell(account_of(checkpoint.name, model, whole, changed, inputs=inputs, wanted=recipe.model, head=head), work)
    metadata = metadata_of(recipe)
    write_bytes(work.folder / TUNED_FILE, to_safetensors(_plain(classifier.state_dict()), metadata))
    return TunedModel(
        **work.origin("finetune", recipe, torch.device("cpu")),
        weights=TUNED_FILE,
        model=encoder.model,
        geometry=geometry_of(spec),
        statistics=encoder.statistics,
        target=target,
        pool="mean" if "fc_norm.weight" in whole.head else "cls",
        encoder=encoder.digest,
        prepared=labelled.digest,
        metrics={},
        checkpoint=checkpoint.name,
    )


def foreign(checkpoint: Place, hint: Hint) -> Foreign:
    """The checkpoint under our names.

    Raises:
        UserError: if it cannot be read safely and whole, or is of no known layout; names it and says what to do.
    """
    if checkpoint.fingerprint and checkpoint.fingerprint != fingerprint(checkpoint):
        raise UserError(f"checkpoint {checkpoint.name} has changed since it was looked at; run the same command again")
    try:
        opened = open_checkpoint(Path(checkpoint.path), checkpoint.name)
        return recognise(opened).read(opened, hint)
    except NotThis as reason:
        raise UserError(f"checkpoint {checkpoint.name}: {reason}") from None
    except (TypeError, AttributeError, KeyError, IndexError, ValueError, RuntimeError) as error:  # Strangers' JSON.
        what = f"it holds what no reader of its layout expects ({type(error).__name__})"
        raise UserError(f"checkpoint {checkpoint.name}: {what}") from error


def with_final_norm(model: Foreign) -> Foreign:
    """An encoder that lost its last norm to the pooling of a tuned model takes that one's."""
    if "encoder.norm.weight" in model.state or "fc_norm.weight" not in model.state:
        return model
    state = dict(model.state)
    for kind in ("weight", "bias"):
        state[f"encoder.norm.{kind}"] = state[f"fc_norm.{kind}"]
    note = "its last norm stood after pooling; as an encoder's it now stands before"
    return replace(model, state=state, notes=(*model.notes, note))


def _of_our_kind(preprocessing: Preprocessing | None, units: str) -> bool:
    """Whether its inputs were of the kind that the plugin gives, as far as anybody knows."""
    return preprocessing is None or not units or preprocessing.units == units


def _fits(checkpoint: Place, whole: Foreign) -> None:
    """Refuse what would not load strictly."""
    try:
        building.encoder(whole)
    except NotThis as reason:
        raise UserError(f"checkpoint {checkpoint.name}: {reason}") from None


def _on_grid(whole: Foreign, spec: PatchSpec) -> Foreign:
    table = with_grid(whole.state[POSITIONS], whole.geometry.grid, spec.grid)
    return replace(whole, state=whole.state | {POSITIONS: table}, geometry=spec)


def _statistics(
    preprocessing: Preprocessing | None, spec: PatchSpec, data: PreparedData | None, checkpoint: Place
) -> tuple[Statistics, str]:
    """Input statistics and where they are from."""
    if preprocessing is not None:
        mean, std = preprocessing.mean, preprocessing.std
        said = f"minus {_numbers(mean)}, over {_numbers(std)}, {preprocessing.source}"
        if len(mean) != spec.channels:
            mean, std = ((sum(values) / len(values),) * spec.channels for values in (mean, std))
            said += f"; their mean for each of your {spec.channels} channel{'s' * (spec.channels > 1)}"
        return Statistics(mean=mean, std=std), said
    if data is None:
        raise UserError(
            f"checkpoint {checkpoint.name} does not say what its inputs went through, or they were of another kind; "
            "prepare your data first, whose statistics then serve, and give them by --from or --labelled"
        )
    return data.statistics, "the statistics of your own data: the checkpoint's do not apply, or nobody knows them"


def _numbers(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"


def _with_classes(model: Foreign, target: Target, checkpoint: Place) -> tuple[Foreign, str]:
    """The model with its outputs in the order of the classes, and what is to be said of that."""
    if not model.outputs:
        raise UserError(f"checkpoint {checkpoint.name} has no head, so it predicts nothing; fine-tune it first")
    if model.outputs != target.outputs:
        raise UserError(
            f"checkpoint {checkpoint.name} has {model.outputs} outputs and the data have {target.outputs} classes; "
            "fine-tune it for these"
        )
    if not model.classes or not target.classes:
        return model, f"its {model.outputs} outputs are taken for the classes of your data in their order"
    if set(model.classes) != set(target.classes):
        other = sorted(set(target.classes) - set(model.classes))
        raise UserError(
            f"checkpoint {checkpoint.name} does not know the class {other[0]!r}; fine-tune it for your classes"
        )
    order = torch.tensor([model.classes.index(name) for name in target.classes])
    state: dict[str, Tensor] = dict(model.state)
    for kind in ("weight", "bias"):
        state[f"head.{kind}"] = state[f"head.{kind}"][order]
    return replace(model, state=state, classes=target.classes), f"its {model.outputs} classes are those of your data"


def _plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights in float32, each in memory of its own."""
    return {name: value.detach().float().contiguous().clone() for name, value in state.items()}


def _tell(account: Account, work: Work) -> None:
    write_text(work.folder / ACCOUNT_FILE, account.model_dump_json(indent=1) + "\n")
    for line in account.lines:
        work.tracker.note(line)
