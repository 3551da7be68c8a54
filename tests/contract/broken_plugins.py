"""Plugins that are broken on purpose: the scaffold's plugin with one fault each, as an installed package would be.

Each entry says what is done to which file, and the rule that is meant to catch it.
"""

import shutil
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field

from core.registry import refresh
from core.testing.bystander import start
from core.testing.rules import Kit
from core.testing.subject import subject
from flows.scaffolding import create

NAME = "fault_probe"
PACKAGE = f"maeflow_{NAME}"


@dataclass(frozen=True)
class Fault:
    """One thing done to a sound plugin."""

    name: str
    rule: str
    """The rule that has to catch it, alone."""
    file: str = ""
    old: str = ""
    new: str = ""
    entry: str = f"{NAME} = {PACKAGE}.config:PLUGIN"
    second: str = ""
    """Entry point of a second package."""
    extra: dict[str, str] = field(default_factory=dict)
    """Files added to the package."""
    second_edit: tuple[str, str] | None = None
    """Another replacement in the same file."""
    beside: tuple[str, str, str] | None = None
    """A replacement in another file: its name, what stands there, what is to."""


def plugin(name, rule, old, new):
    return Fault(name, rule, "plugin.py", old, new)


def config(name, rule, old, new):
    return Fault(name, rule, "config.py", old, new)


def reading(name, rule, old, new):
    return Fault(name, rule, "reading.py", old, new)


RECORD = 'return Record(item.key, encode(array, "raw"), "raw", array.shape, str(array.dtype), item.target, item.group)'
FAULTS = [
    Fault("the name is taken twice", "one-name", second=f"{NAME} = {PACKAGE}.reading:SUFFIXES"),
    config(
        "an error at import", "config-imports", "from typing import", "raise OSError('no licence')\nfrom typing import"
    ),
    config("a missing dependency", "config-imports", "from typing", "import there_is_no_such_package\nfrom typing"),
    Fault("the entry point names another type", "described", entry=f"{NAME} = {PACKAGE}.config:FaultProbeSettings"),
    config("it calls itself something else", "described", f'name="{NAME}"', 'name="another"'),
    config("another version of the contract", "contract-version", "revision=1,", "revision=1, contract=99,"),
    config("settings that import torch", "light-config", "from typing", "import torch\nfrom typing"),
    config(
        "an undocumented field",
        "documented-settings",
        '    """Values drawn black and white in pictures."""\n',
        "",
    ),
    config(
        "a field that JSON lacks",
        "recipe-schema",
        "    shift: NonNegativeInt",
        "    hook: __import__('typing').Callable = abs\n    '''A function.'''\n    shift: NonNegativeInt",
    ),
    Fault(
        "a recipe with a typing error", "recipes-load", extra={"recipes/other.yaml": f"# x\nmodality: {NAME}\ndta: 1"}
    ),
    plugin("a class that lacks a method", "plugin-class-complete", "def features", "def feature"),
    plugin("an error when the plugin is imported", "plugin-class-complete", "import torch\n", "import torch\n1 / 0\n"),
    Fault("a sample that fails", "source", "demo.py", "rows, columns = np.mgrid", "rows, columns = np.no_such"),
    plugin(
        "the order of the items changes",
        "discover-order",
        "return discover(source, SUFFIXES, lambda _: False)",
        "return set(discover(source, SUFFIXES, lambda _: False))",
    ),
    plugin(
        "files in the order of the folder",
        "discover-order",
        "return discover(source, SUFFIXES, lambda _: False)",
        "import os\n        found = {i.path: i for i in discover(source, SUFFIXES, lambda _: False)}\n"
        "        folder = os.path.dirname(source)\n"
        "        return [found[p] for n in os.listdir(folder) if (p := os.path.join(folder, n)) in found]",
    ),
    reading("a payload that is cut short", "read", 'encode(array, "raw")', 'encode(array, "raw")[:-4]'),
    reading("an unpicklable record", "records-pickle", "item.group)\n", "item.group, {'later': lambda: 0})\n"),
    reading("a record in float64", "records-compact", "array.astype(np.float32)", "array.astype(np.float64)"),
    reading(
        "noise while reading",
        "read-repeats",
        "return array if",
        "array = array + np.random.default_rng().standard_normal(array.shape)\n    return array if",
    ),
    reading("the label is lost", "labels-kept", "item.target, item.group", "None, item.group"),
    reading("the group is lost", "groups-kept", "item.target, item.group", "item.target, None"),
    reading("one group for everything", "prepares", "item.target, item.group", 'item.target, "all"'),
    reading(
        "an error of the decoder escapes",
        "bad-files",
        "(ValueError, EOFError, SyntaxError, TypeError)",
        "EOFError",
    ),
    reading(
        "a crash on a bad file",
        "bad-files",
        "    except OSError as",
        "    except ValueError:\n        import os\n\n        os._exit(13)\n    except OSError as",
    ),
    reading("a reason that names the path", "no-paths", '"missing file"', 'f"{path} is missing"'),
    Fault(
        "a private file's name beside its data",
        "no-paths",
        "reading.py",
        "item.group)\n",
        "item.group, {'from': item.path.rpartition('/')[2]})\n",
        beside=("config.py", "revision=1,", "revision=1, private=True,"),
    ),
    plugin(
        "views of several sizes",
        "view",
        "for axis, size in enumerate(self._size):",
        "for axis, size in enumerate((self._size[0], self._size[1] + 2 * train)):",
    ),
    plugin(
        "a length where something was padded only",
        "view",
        "array[None]), record.target)",
        "array[None]), record.target, length=5 if record.key < '05' else None)",
    ),
    plugin("unseeded randomness", "view-seeded", "rng.integers(", "np.random.default_rng().integers("),
    plugin(
        "random without training",
        "fixed-view",
        'self.settings.shift if train and self.purpose == "pretrain" else 0',
        "self.settings.shift",
    ),
    plugin(
        "randomness that depends on the worker",
        "view-any-worker",
        "np.ascontiguousarray(array[None])",
        "np.ascontiguousarray(array[None] + getattr(torch.utils.data.get_worker_info(), 'id', -1) + 1)",
    ),
    plugin(
        "randomness from the process",
        "view-any-worker",
        "np.ascontiguousarray(array[None])",
        "np.ascontiguousarray(array[None] + np.float32(__import__('os').getpid() % 1000))",
    ),
    plugin(
        "repeats that are all alike",
        "repeated-views",
        "    # --- on the device",
        "    def repeated(self, record: Record, rngs: Any) -> Sequence[Sample]:\n"
        "        return [self.view(record, rngs[0], train=True)] * len(rngs)\n\n    # --- on the device",
    ),
    plugin(
        "no view to evaluate",
        "views",
        "    # --- on the device",
        "    def views(self, record: Record) -> Sequence[Sample]:\n        return []\n\n    # --- on the device",
    ),
    plugin(
        "items of one name",
        "discover",
        "return discover(source, SUFFIXES, lambda _: False)",
        "return [*discover(source, SUFFIXES, lambda _: False)] * 2",
    ),
    plugin(
        "a geometry that does not come back",
        "patch-round-trip",
        "return PatchSpec(",
        "return type('Odd', (PatchSpec,), {'unpatchify': lambda p, x: PatchSpec.unpatchify(p, x).flip(-1)})(",
    ),
    Fault(
        "splits that divide a group",
        "prepares",
        "demo.py",
        'instrument-{number // 2}")',
        "instrument-{number // 2},{('train', 'test')[number % 2]}\")",
        second_edit=("path,label,group", "path,label,group,split"),
    ),
    plugin("a geometry of one patch", "patches", "self._size, self.settings.patch)", "self._size, self._size)"),
    plugin("a wrong number of channels", "features", "PatchSpec(1,", "PatchSpec(3,"),
    plugin("features that are all alike", "features-finite", "samples.data.float()", "samples.data.float() * 0"),
    plugin(
        "features that are not finite", "features-finite", "samples.data.float()", "(samples.data.float() - 8).log()"
    ),
    plugin("a batch in another type", "batch", "return Batch(x,", "return Batch(x.double(),"),
    plugin("a batch that is not finite", "batch-finite", "return Batch(x,", "return Batch(x / (x > 0),"),
    plugin("a batch at random", "batch-seeded", "generator=rng, device=x.device", "device=x.device"),
    plugin("augmentation in evaluation", "fixed-batch", "if train and self.settings.noise", "if self.settings.noise"),
    plugin(
        "padding kept secret",
        "padding-told",
        "array[None]), record.target)",
        "array[None]), record.target, length=4 + len(record.key + str(record.payload[0])) % 3)",
    ),
    plugin(
        "mixing by more than the whole",
        "mixing-told",
        "return Batch(x, samples.target)",
        "from core.modality import Mixed\n\n        order = torch.arange(len(x)).flip(0)\n"
        "        mixed = Mixed(order, torch.full((len(x),), 1.5)) if train and self.purpose == 'finetune' else None\n"
        "        return Batch(x, samples.target, mixed=mixed)",
    ),
    plugin(
        "mixing in pretraining",
        "mixing-told",
        "return Batch(x, samples.target)",
        "from core.modality import Mixed\n\n        order = torch.arange(len(x)).flip(0)\n"
        "        mixed = Mixed(order, torch.full((len(x),), 0.5)) if train else None\n"
        "        return Batch(x, samples.target, mixed=mixed)",
    ),
    plugin("the stage's own size is ignored", "input-shape", "self.input_shape is None", "True"),
    plugin(
        "a mask that hides nothing",
        "mask",
        "    # --- for people",
        "    def mask(self, config):\n        from core.model.masking import split_by_score\n\n"
        "        return lambda n, rng, _: split_by_score(torch.rand(n, 16, generator=rng), 16)\n\n    # --- for people",
    ),
    plugin(
        "a mask that hides everything",
        "mask",
        "    # --- for people",
        "    def mask(self, config):\n        from core.model.masking import split_by_score\n\n"
        "        return lambda n, rng, _: split_by_score(torch.rand(n, 16, generator=rng), 0)\n\n    # --- for people",
    ),
    plugin("values no model can take", "loss-falls", "return Batch(x,", "return Batch(x * 1e30,"),
    plugin(
        "render that draws padding",
        "render-padding",
        "return Batch(x, samples.target)",
        "return Batch(x, samples.target, torch.ones(len(x), 16, dtype=torch.bool))",
    ),
    plugin("render returning floats", "render", 'return [Media("image", ".png", out.getvalue())]', "return x.tolist()"),
    reading(
        "labels of another task",
        "labels-fit",
        "item.target, item.group",
        "[item.target, item.target + '2'], item.group",
    ),
    Fault(
        "masks that are never cut",
        "dense-targets",
        "reading.py",
        "item.target, item.group",
        "[0, 1], item.group",
        beside=("recipes/demo.yaml", "seed: 0\n", "seed: 0\ntask: {kind: segmentation, classes: [none, wave]}\n"),
    ),
]


def install(fault, folder):
    """Write the faulty package into ``folder`` as an installer would; put the folder on the path to find it."""
    create(NAME, folder / "package")
    shutil.move(folder / "package" / PACKAGE, folder / PACKAGE)
    if fault.file:
        file = folder / PACKAGE / fault.file
        text = file.read_text()
        assert text.count(fault.old) >= 1, f"{fault.name}: {fault.old!r} does not stand in the template"
        file.write_text(text.replace(fault.old, fault.new).replace(*(fault.second_edit or ("", "", 0))))
    if fault.beside:
        name, old, new = fault.beside
        text = (folder / PACKAGE / name).read_text()
        assert text.count(old) == 1
        (folder / PACKAGE / name).write_text(text.replace(old, new))
    for name, text in fault.extra.items():
        (folder / PACKAGE / name).write_text(text)
    for number, entry in enumerate(filter(None, (fault.entry, fault.second))):
        about = folder / f"package_{number}-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: package-{number}\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(f"[maeflow.modalities]\n{entry}\n")


@contextmanager
def on_path(folder):
    """``folder`` among the packages of this process and of those it starts."""
    sys.path.insert(0, str(folder))
    refresh()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in [n for n in sys.modules if n.partition(".")[0] == PACKAGE]:
            del sys.modules[name]
        refresh()


def findings(fault, folder, rules, run=start):
    """What the kit finds about a plugin with ``fault``; ``run`` runs its second process."""
    install(fault, folder)
    with on_path(folder), subject(NAME) as under_test:
        under_test.run = run
        return list(Kit(under_test, rules).findings())
