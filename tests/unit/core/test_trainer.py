"""The training loop: exact resume, accumulation, schedules, and no waiting for the device."""

import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from core.config import ComputeConfig, DecoderConfig, ModelConfig, PretrainConfig, TrainConfig
from core.data.loading import MicroBatch, MicroBatches, Part, Stream, TrainViews
from core.errors import StageError, Stopped, UserError
from core.modality import Batch, Modality, Record, Sample, SampleBatch, Stats
from core.model.mae import MaskedAutoencoder
from core.model.masking import sampler
from core.model.objective import MaskedObjective
from core.model.patches import PatchSpec
from core.tracking import JsonlTracker
from core.training import checkpoint
from core.training.distributed import World
from core.training.optim import Schedule, layer_of, parameter_groups, schedule
from core.training.trainer import BEST_FILE, Best, Job, Trainer

sys.path.insert(0, str(Path(__file__).parents[2]))
from event_curves import curves

SPEC = PatchSpec(2, (16,), (2,))
MODEL = ModelConfig(width=32, depth=2, heads=2, decoder=DecoderConfig(width=16, depth=1, heads=2))


class Signals(Modality):
    """Two-channel signals with random shifts."""

    def discover(self, source):
        return []

    def read(self, item):
        return []

    def patches(self):
        return SPEC

    def view(self, record, rng, train):
        data = np.frombuffer(record.payload, np.float32).reshape(2, 16)
        return Sample(np.roll(data, rng.integers(16), axis=1) if train else data, record.target)

    def features(self, samples):
        return samples.data.float()

    def batch(self, samples, stats, rng, train):
        noise = torch.randn(samples.data.shape, generator=rng, device=rng.device) * 0.01
        return Batch(stats.normalise(self.features(samples)) + noise, samples.target)

    def render(self, x):
        return []


class Memory:
    """Rows in memory."""

    def __init__(self, count=20):
        self.data = np.random.default_rng(0).standard_normal((count, 2, 16)).astype(np.float32)

    def rows(self, ids):
        return [Record(f"r{i}", self.data[i].tobytes(), "raw", (2, 16), "float32", int(i) % 3) for i in ids]


def trainer(
    folder, *, should_stop=lambda: False, evaluate=lambda _: {}, best=None, compute=None, world=World(), **settings
):
    config = PretrainConfig(
        **{"epochs": 6, "warmup_epochs": 1, "batch": 8, "base_lr": 0.05, "drop_path": 0.3} | settings
    )
    torch.manual_seed(0)
    stats = Stats(torch.zeros(2), torch.ones(2))
    objective = MaskedObjective(
        MaskedAutoencoder(SPEC, MODEL, config.drop_path), config, sampler(config.mask, SPEC.grid), stats
    )
    folder.mkdir(exist_ok=True)
    job = Job(
        name="pretrain",
        config=config,
        compute=ComputeConfig(workers=0, checkpoint_seconds=1e-9, **(compute or {})),
        device=torch.device("cpu"),
        seed=3,
        schedule=schedule(config, 20),
        per_epoch=20,
        plugin=Signals(None),
        stats=stats,
        tracker=JsonlTracker(folder),
        workdir=folder,
        should_stop=should_stop,
        evaluate=evaluate,
        best=best,
        world=world,
    )
    return Trainer(objective, parameter_groups(objective.named_parameters(), config.weight_decay), job)


def views():
    return TrainViews([Memory()], Stream([Part(np.arange(20))], 3), Signals(None), 3, None)


def test_interrupted_training_ends_bit_identical(tmp_path):
    settings = {"ema": 0.9, "clip_grad": 1.0, "micro_batch": 4, "compute": {"log_every": 4}}
    whole = trainer(tmp_path / "whole", **settings)
    loss = whole.run(views())
    calls = iter([False, False, False, True] * 100)
    for _ in range(100):
        parts = trainer(tmp_path / "parts", should_stop=lambda: next(calls), **settings)
        try:
            resumed = parts.run(views())
            break
        except Stopped:
            continue
    assert resumed == loss
    with whole.averaged(), parts.averaged():
        for name, value in whole.objective.model.state_dict().items():
            assert torch.equal(value, parts.objective.model.state_dict()[name]), name
    assert curves(tmp_path / "parts") == curves(tmp_path / "whole")


@pytest.mark.parametrize("workers", [1, 2])
def test_results_do_not_depend_on_loader_processes(tmp_path, workers):
    alone = trainer(tmp_path / "a").run(views())
    assert trainer(tmp_path / "b", compute={}).run(views()) == alone
    shared = trainer(tmp_path / "c")
    shared.job = replace(shared.job, compute=shared.job.compute.model_copy(update={"workers": workers}))
    assert shared.run(views()) == alone


def test_accumulated_gradients_equal_those_of_the_whole_batch(tmp_path):
    """With the same masks and no noise, k micro-batches give the gradient of one batch."""
    grads = []
    for micro in (8, 2):
        t = trainer(tmp_path / str(micro), micro_batch=micro, drop_path=0.0)
        data = torch.from_numpy(Memory().data[:8])
        t.objective.draw = lambda n, rng, valid, own=t.objective.draw: own(1, torch.Generator().manual_seed(1), None)
        t.objective.draw = _same_mask(t.objective.draw)
        t.job = replace(t.job, plugin=_Still(None))
        t.optimizer.step = lambda t=t: grads.append([p.grad.clone() for p in t._parameters])
        parts = [(i, SampleBatch(data[i * micro : (i + 1) * micro], None)) for i in range(8 // micro)]
        t.train_step(0, parts, 8 // micro)
    for one, several in zip(*grads, strict=True):
        assert torch.allclose(one, several, atol=1e-6)


class _Still(Signals):
    def batch(self, samples, stats, rng, train):
        return Batch(self.features(samples))


def _same_mask(draw):
    def one(samples, rng, valid):
        mask = draw(1, rng, valid)
        return type(mask)(mask.keep_BK.expand(samples, -1), mask.masked_BM.expand(samples, -1))

    return one


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_step_never_waits_for_the_device(tmp_path, precision):
    """Fake tensors hold no values: any `.item()`, any branch on data, raises."""
    with FakeTensorMode():
        t = trainer(
            tmp_path,
            precision=precision,
            clip_grad=1.0,
            micro_batch=4,
            ema=0.9,
            decode_fraction=0.5,
            masks_per_sample=2,
        )
        t.train_step(0, [(i, SampleBatch(torch.randn(4, 2, 16), None)) for i in range(2)], 2)
        with pytest.raises(Exception, match="_local_scalar_dense"):
            t._loss.mean()


def test_a_non_finite_step_changes_nothing(tmp_path):
    t = trainer(tmp_path)
    good = torch.from_numpy(Memory().data[:8])
    t.train_step(0, [(0, SampleBatch(good, None))], 1)
    before = [p.detach().clone() for p in t._parameters]
    t.train_step(1, [(0, SampleBatch(good * float("nan"), None))], 1)
    assert all(torch.equal(a, b) for a, b in zip(before, t._parameters, strict=True))
    t.train_step(2, [(0, SampleBatch(good, None))], 1)
    assert any(not torch.equal(a, b) for a, b in zip(before, t._parameters, strict=True))
    assert all(p.isfinite().all() for p in t._parameters)


def test_a_run_whose_gradients_stay_non_finite_ends_with_advice(tmp_path):
    bad = views()
    bad._stores[0].data *= np.nan
    with pytest.raises(StageError, match="base_lr"):
        trainer(tmp_path).run(bad)


def test_best_weights_are_those_of_the_best_evaluation(tmp_path):
    scores = iter([0.1, 0.7, 0.3] + [0.2] * 9)
    seen = []

    def evaluate(step):
        seen.append(t.objective.model.encoder.blocks[0].mlp.fc1.weight.detach().clone())
        return {"score": next(scores)}

    t = trainer(tmp_path, evaluate=evaluate, best=Best("score", higher=True))
    t.run(views())
    from safetensors.torch import load_file

    kept = load_file(tmp_path / BEST_FILE)["encoder.blocks.0.mlp.fc1.weight"]
    assert torch.equal(kept, seen[1])
    assert t.best_value == 0.7


def test_only_the_newest_checkpoints_stay(tmp_path):
    trainer(tmp_path, compute={"keep": 2}).run(views())
    assert len(list((tmp_path / checkpoint.FOLDER).iterdir())) == 2
    checkpoint.clear(tmp_path)
    assert checkpoint.latest(tmp_path) is None


def test_the_stream_shows_every_sample_once_an_epoch_and_drops_none():
    stream = Stream([Part(np.arange(7))], 0)
    for epoch in range(3):
        draws = [stream[i] for i in range(epoch * 7, epoch * 7 + 7)]
        assert sorted(d.row for d in draws) == list(range(7))
        assert {d.epoch for d in draws} == {epoch}
    assert [stream[i].row for i in range(7)] != [stream[i].row for i in range(7, 14)]


def test_repeated_samples_stand_together_and_are_read_once():
    """Three different views of every row, from one reading each."""
    read = []

    class Counting(Memory):
        def rows(self, ids):
            read.extend(ids)
            return super().rows(ids)

    stream = Stream([Part(np.arange(5))], 0, repeats=3)
    draws = [stream[i] for i in range(stream.per_epoch)]
    assert [d.row for d in draws[::3]] == [d.row for d in draws[1::3]] == [d.row for d in draws[2::3]]
    assert sorted(d.row for d in draws[::3]) == list(range(5))
    assert len({(d.row, d.copy) for d in draws}) == stream.per_epoch == 15
    views = TrainViews([Counting()], stream, Signals(None), 3, None)
    _, samples = views[MicroBatch(0, 0, 0, 15)]
    assert sorted(read) == list(range(5))
    assert len({row.numpy().tobytes() for row in samples.data}) > 10


def test_repeats_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(ValueError, match="8 samples at once are not a multiple of repeats 3"):
        TrainConfig(batch=16, micro_batch=8, repeats=3)


def test_weights_of_sources_are_their_share_of_an_epoch():
    stream = Stream([Part(np.arange(10), 2.5), Part(np.arange(4), 0.5)], 0)
    draws = [stream[i] for i in range(stream.per_epoch)]
    assert stream.per_epoch == 27
    assert sum(d.store == 1 for d in draws) == 2
    counts = np.bincount([d.row for d in draws if d.store == 0])
    assert sorted(counts.tolist()) == [2] * 5 + [3] * 5
    assert len({(d.store, d.row, d.copy) for d in draws}) == 27


def test_rows_are_drawn_as_often_as_their_frequencies_say_each_time_with_a_view_of_its_own():
    part = Part(np.arange(10, 13), frequencies=np.array([0.5, 0.5, 0.0]), samples=1000)
    stream = Stream([part], 0)
    draws = [stream[i] for i in range(stream.per_epoch)]
    counts = np.bincount([d.row - 10 for d in draws], minlength=3)
    assert stream.per_epoch == 1000
    assert counts[2] == 0
    assert counts[0] == pytest.approx(500, abs=60)
    assert len({(d.row, d.copy) for d in draws}) == 1000
    assert [stream[i] for i in range(1000)] == draws
    assert [stream[1000 + i].row for i in range(1000)] != [d.row for d in draws]


def test_an_epoch_may_be_shorter_than_the_data_and_takes_others_next_time():
    stream = Stream([Part(np.arange(100), samples=30)], 0)
    first, second = ([stream[e * 30 + i].row for i in range(30)] for e in (0, 1))
    assert len(set(first)) == len(set(second)) == 30
    assert set(first) != set(second)


def test_processes_divide_the_micro_batches_of_a_step_among_them():
    every = list(MicroBatches(2, 4, 16, 4))
    halves = [list(MicroBatches(2, 4, 16, 4, rank, 2)) for rank in (0, 1)]
    assert sorted(sum(halves, []), key=lambda m: (m.step, m.index)) == every
    assert every[0] == MicroBatch(2, 0, 32, 4)


def test_a_step_that_processes_cannot_share_is_refused_with_the_setting_to_change(tmp_path):
    with pytest.raises(UserError, match=r"2 processes cannot share the 1 .* set pretrain.micro_batch .*\(4, say\)"):
        trainer(tmp_path, world=World(rank=0, size=2))


def test_loaders_hear_no_signals_and_die_with_their_process(tmp_path):
    code = f"""
        import os, sys, time
        sys.path[:0] = [{str(Path(__file__).parent)!r}]
        import psutil
        from core.data.loading import MicroBatches, signals_held, train_loader
        from test_trainer import views
        with signals_held():
            loader = iter(train_loader(views(), MicroBatches(0, 10**9, 8, 8), 2, pin=False))
        next(loader)
        for child in psutil.Process().children():
            child.terminate()
            child.send_signal(2)
            print(child.pid, flush=True)
        for _ in range(20):
            next(loader)
        print("goes on", flush=True)
        time.sleep(60)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    workers = [psutil.Process(int(process.stdout.readline())) for _ in range(2)]
    assert process.stdout.readline() == "goes on\n"
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


def test_schedule_warms_up_and_falls_to_its_floor():
    plan = Schedule(peak=1.0, floor=0.1, warmup=4, total=20)
    assert [plan.lr(s) for s in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert plan.lr(12) == pytest.approx(0.55)
    assert plan.lr(20) == pytest.approx(0.1)
    assert plan.lr(19) < plan.lr(18)


def test_learning_rate_scales_with_the_batch():
    assert TrainConfig(base_lr=1.5e-4, batch=4096).lr == pytest.approx(2.4e-3)


def test_decay_sets_and_layer_scales():
    torch.manual_seed(0)
    encoder = MaskedAutoencoder(SPEC, MODEL).encoder
    groups = parameter_groups(encoder.named_parameters(), 0.05, layer_decay=0.5, depth=2)
    place = {id(p): (g["weight_decay"], g["lr_scale"]) for g in groups for p in g["params"]}
    named = {name: place[id(p)] for name, p in encoder.named_parameters()}
    assert named["cls_token"] == (0.0, 0.125)
    assert named["patch_embed.proj.weight"] == (0.05, 0.125)
    assert named["patch_embed.proj.bias"] == (0.0, 0.125)
    assert named["blocks.0.attn.qkv.weight"] == (0.05, 0.25)
    assert named["blocks.1.norm1.weight"] == (0.0, 0.5)
    assert named["norm.weight"] == (0.0, 1.0)
    assert layer_of("head.weight", 2) == 3
