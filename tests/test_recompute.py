"""Activation checkpointing: the same numbers to the bit, fewer of them kept, and a model that is left as it was."""

import copy
import json

import pytest
import torch
from torch import nn

import fitkit
from fitkit.builder import begin, load_spec
from fitkit.data import Inputs
from fitkit.engine.devices import check_compile
from fitkit.engine.recompute import blocks, recomputed
from fitkit.errors import SpecError, TrainingError
from fitkit.parts.models import models
from fitkit.spec.options import FitOptions

ON = FitOptions(activation_checkpointing=True)
IMAGES = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(0, 11, (4, 12), generator=torch.Generator().manual_seed(0))
TABLE = IMAGES.flatten()[:640].reshape(32, 20)


class Mine(nn.Module):
    """A model of the user's own: blocks in a ModuleList, called with two arguments, one of them by name."""

    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.norm = nn.Linear(20, 20), nn.BatchNorm1d(20, momentum=None)

        def forward(self, x, *, scale):
            return torch.relu(self.norm(self.layer(x))) * scale, scale

    def __init__(self):
        super().__init__()
        self.steps = nn.ModuleList(Mine.Step() for _ in range(3))

    def forward(self, x):
        for step in self.steps:
            x, _ = step(x, scale=0.5)
        return x


def named(name, inputs, **arguments):
    return models[name].factory(inputs, 11, **arguments)


MODELS = {
    "mlp": (lambda: named("mlp", Inputs((20,)), hidden=(16,) * 9, norm="BatchNorm1d", dropout=0.2), TABLE),
    "cnn": (lambda: named("cnn", Inputs((3, 16, 16)), dropout=0.2), IMAGES),
    "resnet20": (lambda: named("resnet20", Inputs((3, 16, 16))), IMAGES),
    "resnet18": (lambda: named("resnet18", Inputs((3, 16, 16))), IMAGES),
    "gpt": (lambda: named("gpt", Inputs((12,), 11), width=16), TOKENS),
    "transformer": (lambda: named("transformer", Inputs((12,), 11), width=16), TOKENS),
    "a user's blocks": (Mine, TABLE),
    "instance norms": (
        lambda: nn.Sequential(*(nn.InstanceNorm2d(3, affine=True, track_running_stats=True) for _ in range(5))),
        IMAGES,
    ),
    "in place": (
        lambda: nn.Sequential(*(m for _ in range(4) for m in (nn.Linear(20, 20), nn.SiLU(inplace=True)))),
        TABLE,
    ),
}


def passed(model, x, options):
    """Return output, gradients and buffers of a training pass, and how many numbers it kept beside the parameters."""
    model, own, kept = copy.deepcopy(model), {}, {}
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    torch.manual_seed(3)
    names = list(model.state_dict())
    with recomputed(model, options):
        assert list(model.state_dict()) == names
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = model(x)
        size = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
        kept.clear()
        output.square().mean().backward()
    assert all("forward" not in vars(module) for module in model.modules())
    return [output.detach(), *(p.grad for p in model.parameters()), *model.buffers(), torch.get_rng_state()], size


@pytest.mark.parametrize("name", MODELS)
def test_numbers_are_the_same_to_the_bit_and_fewer_are_kept(name):
    make, x = MODELS[name]
    torch.manual_seed(1)
    model = make()
    (plain, all_of_it), (again, less) = passed(model, x, FitOptions()), passed(model, x, ON)
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))  # running statistics too
    assert less < 0.65 * all_of_it


def test_what_is_kept_grows_as_the_root_of_the_depth():
    sizes = []
    for depth in (16, 64):
        model = nn.Sequential(*(m for _ in range(depth) for m in (nn.Linear(20, 20), nn.Tanh())))
        sizes.append(passed(model, TABLE, ON)[1])
    assert sizes[1] < 2.5 * sizes[0]


def test_no_segment_begins_with_a_layer_that_writes_into_its_input():
    model = MODELS["in place"][0]()
    assert [block.name for block in blocks(model)] == ["0-5", "6-7"]  # 3-5 would begin with SiLU


def test_a_whole_fit_is_the_same_and_says_what_it_does(tmp_path):
    spec = {"data": {"digits": "image"}, "model": {"cnn": [4, 8]}, "fit": {"max_steps": 12, "device": "cpu"}}
    plain = fitkit.build(spec)
    again = fitkit.build(spec, overrides={"fit.activation_checkpointing": True})
    assert "activations are computed again in the backward pass, for 4 segments of layers: 0-3, " in str(again)
    assert "computed again" not in str(plain)
    plain.fit(), again.fit()
    assert all(map(torch.equal, plain.model.state_dict().values(), again.model.state_dict().values()))
    assert plain.history["val_loss"] == again.history["val_loss"]


def test_a_model_without_blocks_is_refused_where_the_spec_asks():
    spec = {"fit": {"activation_checkpointing": True, "device": "cpu"}}
    with pytest.raises(SpecError, match=r"fit.activation_checkpointing: Linear has neither repeated blocks nor a Seq"):
        fitkit.build(spec, model=nn.Linear(20, 3), data=(TABLE, torch.arange(32) % 3))
    with pytest.raises(SpecError, match='fit.gradient_checkpointing: .*Did you mean "activation_checkpointing"'):
        fitkit.load_spec({"data": "digits", "model": "mlp", "fit": {"gradient_checkpointing": True}})


def test_a_block_that_changes_its_own_buffer_is_refused():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(20, 20)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x):
            self.seen += len(x)
            return self.layer(x)

    module = nn.Sequential(Counts(), Counts(), nn.Linear(20, 3))
    spec = {"fit": {"activation_checkpointing": True, "device": "cpu", "epochs": 1}}
    with pytest.raises(TrainingError, match='0 changes its buffer "seen" in training, which would happen twice'):
        fitkit.Model(module).fit(spec, data=(TABLE, torch.arange(32) % 3))
    assert all("forward" not in vars(m) for m in module.modules())


def test_the_estimate_of_a_run_knows_it():
    spec = {
        "data": {"synthetic": {"samples": 512, "features": 16}},
        "model": {"mlp": [64] * 30},
        "fit": {"batch_size": 256, "device": "cpu"},
    }
    found = []
    for on in (False, True):
        begun = begin(load_spec(spec, {"fit.activation_checkpointing": on}), None, None)
        found.append(begun.size(begun.sketch().model))
    assert found[1].saved < 0.5 * found[0].saved and found[1].weights == found[0].weights


def test_peak_memory_is_reported(tmp_path, capsys):
    spec = {"data": "iris", "model": "mlp", "fit": {"epochs": 1, "device": "cpu"}}
    history = fitkit.fit(spec, out=tmp_path / "run")
    assert 50 < history.peak_memory_mb < 100_000
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["peak_memory_mb"] == round(history.peak_memory_mb, 1)
    kept = fitkit.History.from_json((tmp_path / "run/history.json").read_text())
    assert kept.peak_memory_mb == history.peak_memory_mb


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Dynamo|.*does not support|.*online softmax")
def test_compiled_model_and_loss_compute_again_too():
    try:
        check_compile(True)
    except SpecError as error:
        pytest.skip(str(error))
    layers = [layer for _ in range(3) for layer in ({"Linear": 12}, "BatchNorm1d", "Tanh")]
    spec = {
        "data": {"synthetic": {"samples": 64, "features": 8}},
        "splits": {"random": {"val": 0}},
        "model": [*layers, {"Linear": "outputs"}],
        "optimizer": {"SGD": 0.1},
        "fit": {"epochs": 4, "batch_size": 64, "device": "cpu", "activation_checkpointing": True},
    }
    eager, compiled = fitkit.build(spec), fitkit.build(spec, overrides={"fit.compile": True})
    assert compiled.compiled == "model and loss"  # whole steps know no backward pass
    eager.fit(), compiled.fit()
    for name, tensor in eager.model.state_dict().items():  # running statistics moved once a step
        torch.testing.assert_close(compiled.model.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)


def test_a_module_that_two_others_share_is_run_once():
    shared = nn.Sequential(*[nn.Linear(4, 4) for _ in range(4)])

    class Holds(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x)

    class Encoder(Holds):
        pass

    class Head(Holds):
        pass

    model = nn.ModuleDict({"encoder": Encoder(shared), "head": Head(shared)})
    assert [block.name for block in blocks(model)] == ["encoder.net.0-1", "encoder.net.2-3"]
