"""Optimizers: the table is torch's, every parameter is in the right group, and a saved state goes on bit by bit."""

import copy
import inspect

import pytest
import torch
from torch import nn

from fitkit.errors import SpecError
from fitkit.parts.optimizers import Muon, build_optimizer, hidden_matrices, optimizers
from fitkit.spec.component import Component

CPU = torch.device("cpu")
FUSED = [name for name in optimizers if "fused" in inspect.signature(optimizers[name].factory).parameters]
HIDDEN = ("params", "foreach", "maximize", "fused", "capturable", "differentiable")


def build(name, model, **args):
    return build_optimizer(Component(optimizers[name], args, f"optimizer.{name}"), model, CPU)


def network(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 4), nn.Linear(4, 2)).to(dtype)


def train(model, optimizer, steps, first=0):
    """Take steps on a quadratic of the model's outputs; return the losses."""
    losses = []
    for step in range(first, first + steps):
        draw = torch.Generator().manual_seed(step % 4)
        x = torch.randn(16, 3, generator=draw, dtype=torch.float64).to(next(model.parameters()).dtype)
        loss = (model(x) - x[:, :2]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def weights(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def groups_by_name(optimizer):
    return {name: group for group in optimizer.param_groups for name in group["param_names"]}


# the table


def test_the_table_holds_every_dense_optimizer_of_torch():
    known = {name for name in torch.optim.__all__ if isinstance(getattr(torch.optim, name), type)}
    assert set(optimizers) == known - {"Optimizer", "LBFGS", "SparseAdam"}


@pytest.mark.parametrize("name", optimizers)
def test_an_entry_takes_torchs_arguments_and_no_hidden_ones(name):
    entry, torchs = optimizers[name], inspect.signature(getattr(torch.optim, name)).parameters
    own = {argument.name: argument.default for argument in entry.arguments.values() if not argument.shared}
    expected = {name: parameter.default for name, parameter in torchs.items() if name not in HIDDEN}
    if name == "Muon":
        expected["adamw_lr"] = 3e-4
    assert own == expected
    assert set(entry.arguments) - set(own) == {"no_decay", "lr_patterns"}
    assert entry.primary == "lr" and entry.summary.endswith(".")


# steps


@pytest.mark.parametrize("name", optimizers)
def test_every_optimizer_lowers_a_quadratic_the_same_way_twice(name):
    models = network(), network()
    first, second = (train(model, build(name, model), 60) for model in models)
    assert sum(first[-4:]) < sum(first[:4])
    assert first == second and same(weights(models[0]), weights(models[1]))


@pytest.mark.parametrize("name", optimizers)
def test_a_saved_state_goes_on_bit_by_bit(name):
    dtype = torch.float32  # in another dtype torch casts NAdam's float32 `mu_product` when it loads a state
    model = network(dtype=dtype)
    optimizer = build(name, model, lr_patterns={"2.*": 0.003})
    train(model, optimizer, 5)
    other = network(seed=1, dtype=dtype)
    other.load_state_dict(model.state_dict())
    resumed = build(name, other, lr_patterns={"2.*": 0.003})
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert train(model, optimizer, 5, first=5) == train(other, resumed, 5, first=5)
    assert same(weights(model), weights(other))
    assert resumed.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]


@pytest.mark.parametrize("name", optimizers)
def test_a_copied_optimizer_goes_on_like_the_original(name):
    model = network()
    optimizer = build(name, model)
    train(model, optimizer, 3)
    twin, copied = copy.deepcopy((model, optimizer))
    assert train(model, optimizer, 3, first=3) == train(twin, copied, 3, first=3)
    assert same(weights(model), weights(twin))


@pytest.mark.parametrize("name", optimizers)
def test_the_learning_rate_of_a_group_takes_effect(name):
    model = network()
    optimizer = build(name, model)
    for group in optimizer.param_groups:
        assert group["initial_lr"] == group["lr"] > 0
        group["lr"] = 0.0
    before = weights(model)
    if name != "ASGD":  # it reads the learning rate one step late
        train(model, optimizer, 1)
        assert same(weights(model), before) != optimizers[name].facts.get("initial_lr_only", False)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"]
    train(model, optimizer, 2)
    assert not same(weights(model), before)


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fused_and_unfused_steps_agree(name, dtype):
    args = {"weight_decay": 0.1, "lr_patterns": {"0.*": 0.02}}
    args |= {"Adam": {"amsgrad": True}}.get(name, {})
    model, other = network(dtype=dtype), network(dtype=dtype)
    fused, plain = build(name, model, **args), build(name, other, **args)
    for part in getattr(plain, "parts", [plain]):
        for group in part.param_groups:
            assert group["fused"] if "fused" in group else group["use_muon"]
            group.pop("fused", None)
            group |= {"fused": False} if not group.get("use_muon") else {}
    tolerance = {"rtol": 1e-9, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-3, "atol": 1e-5}
    torch.testing.assert_close(train(model, fused, 6), train(other, plain, 6), **tolerance)
    torch.testing.assert_close(weights(model), weights(other), **tolerance)


def test_sgd_with_momentum_is_not_fused():
    """Its fused momentum begins as uninitialised memory when fp16 skips the first step."""
    assert not build("SGD", network(), momentum=0.9).param_groups[0].get("fused")
    assert build("SGD", network()).param_groups[0]["fused"]


def test_sparse_gradients_and_strange_dtypes_go_without_fused_kernels():
    assert build("SGD", nn.Embedding(4, 2, sparse=True)).param_groups[0].get("fused") is None
    assert build("SGD", nn.Linear(2, 2, dtype=torch.complex64)).param_groups[0].get("fused") is None
    assert build("SGD", nn.Linear(2, 2, dtype=torch.bfloat16)).param_groups[0]["fused"] is True


# groups


class RootNorm(nn.Module):
    """A norm that torch does not know."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))


class Zoo(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.position = nn.Parameter(torch.zeros(5, 4))
        self.conv = nn.Conv1d(4, 4, 3)
        self.batch_norm = nn.BatchNorm1d(4)
        self.layer_norm = nn.LayerNorm(4)
        self.own_norm = RootNorm()
        self.attention = nn.MultiheadAttention(4, 2)
        self.recurrent = nn.LSTM(4, 4)
        self.hidden = nn.Linear(4, 4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.head = nn.Linear(4, 6)
        self.head.weight = self.embed.weight


DECAYED = {
    "embed.weight",
    "position",
    "conv.weight",
    "attention.in_proj_weight",
    "attention.out_proj.weight",
    "recurrent.weight_ih_l0",
    "recurrent.weight_hh_l0",
    "hidden.weight",
}
UNDECAYED = {
    "conv.bias",
    "batch_norm.weight",
    "batch_norm.bias",
    "layer_norm.weight",
    "layer_norm.bias",
    "own_norm.scale",
    "attention.in_proj_bias",
    "attention.out_proj.bias",
    "recurrent.bias_ih_l0",
    "recurrent.bias_hh_l0",
    "hidden.bias",
    "head.bias",
}


@pytest.mark.parametrize("name", optimizers)
def test_every_trainable_parameter_is_in_exactly_one_group(name):
    model = Zoo()
    optimizer = build(name, model, lr_patterns={"conv.*": 0.5})
    grouped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert all(group["params"] for group in optimizer.param_groups)
    assert sorted(map(id, grouped)) == sorted(map(id, trainable))
    found = groups_by_name(optimizer)
    assert set(found) == DECAYED | UNDECAYED
    assert {name for name in found if found[name]["lr"] == 0.5} == {"conv.weight", "conv.bias"}


@pytest.mark.parametrize("name", [name for name in optimizers if "weight_decay" in optimizers[name].arguments])
def test_biases_and_norms_do_not_decay_unless_asked(name):
    found = groups_by_name(build(name, Zoo(), weight_decay=0.1))
    assert {name for name in found if found[name]["weight_decay"] == 0.1} == DECAYED
    assert {name for name in found if found[name]["weight_decay"] == 0.0} == UNDECAYED
    asked = build(name, Zoo(), weight_decay=0.1, no_decay="none")
    assert {group["weight_decay"] for group in asked.param_groups} == {0.1}
    listed = groups_by_name(build(name, Zoo(), weight_decay=0.1, no_decay=["embed.*", "*norm.weight"]))
    undecayed = {name for name in listed if listed[name]["weight_decay"] == 0.0}
    assert undecayed == {"embed.weight", "batch_norm.weight", "layer_norm.weight"}


def test_without_weight_decay_there_is_one_group():
    assert len(build("Adam", Zoo()).param_groups) == 1
    assert len(build("Rprop", Zoo()).param_groups) == 1


@pytest.mark.parametrize("name", optimizers)
def test_the_first_group_has_the_learning_rate_of_the_spec(name):
    optimizer = build(name, network(), lr=0.3, lr_patterns={"0.*": 0.1, "1.*": 0.2})
    assert optimizer.param_groups[0]["lr"] == 0.3


def test_a_tied_parameter_answers_to_each_of_its_names():
    model = Zoo()
    found = groups_by_name(build("SGD", model, lr_patterns={"head.weight": 0.5}))
    assert found["embed.weight"]["lr"] == 0.5 and "head.weight" not in found


@pytest.mark.parametrize("wrong", [
    ({"lr_patterns": {"hed.*": 0.1}}, r'^optimizer\.SGD\.lr_patterns: "hed\.\*" matches no trainable parameter\. They'),
    ({"lr_patterns": {"frozen.*": 0.1}}, r'"frozen\.\*" matches no trainable parameter'),
    ({"lr_patterns": {"conv.*": 0.1, "*.bias": 0.2}}, r'conv\.bias matches both "conv\.\*" and "\*\.bias"'),
    ({"no_decay": ["Conv.*"]}, r'^optimizer\.SGD\.no_decay: "Conv\.\*" matches no trainable parameter'),
    ({"nesterov": True}, r"^optimizer\.SGD: Nesterov momentum requires a momentum and zero dampening"),
])  # fmt: skip
def test_a_mistake_in_the_arguments_is_said_where_it_stands(wrong):
    args, message = wrong
    with pytest.raises(SpecError, match=message):
        build("SGD", Zoo(), **args)


@pytest.mark.parametrize("name", optimizers)
@pytest.mark.parametrize("model", [nn.ReLU(), nn.Linear(2, 2).requires_grad_(False)])
def test_a_model_without_trainable_parameters_is_refused(name, model):
    with pytest.raises(SpecError, match="the model has no trainable parameter"):
        build(name, model)


# Muon


def test_muon_takes_hidden_matrices_and_adamw_the_rest():
    optimizer = build("Muon", Zoo(), lr=0.02, adamw_lr=0.004, weight_decay=0.1)
    found = groups_by_name(optimizer)
    matrices = {"attention.in_proj_weight", "attention.out_proj.weight", "hidden.weight"}
    assert {name for name in found if found[name]["use_muon"]} == matrices
    assert all(found[name]["lr"] == (0.02 if name in matrices else 0.004) for name in found)
    assert all(found[name]["weight_decay"] == (0.1 if name in DECAYED else 0.0) for name in found)


def test_muon_steps_as_torchs_muon_and_torchs_adamw_do():
    model, other = network(), network()
    optimizer = build("Muon", model, lr=0.02, weight_decay=0.0)
    matrices = [other[0].weight, other[2].weight]
    rest = [parameter for parameter in other.parameters() if not any(parameter is matrix for matrix in matrices)]
    muon = torch.optim.Muon(matrices, lr=0.02, weight_decay=0.0)
    adamw = torch.optim.AdamW(rest, lr=3e-4, weight_decay=0.0, fused=True)
    for step in range(4):
        train(model, optimizer, 1, first=step)
        train(other, muon, 1, first=step)  # the gradients are still there
        adamw.step()
        adamw.zero_grad()
    assert same(weights(model), weights(other))


def test_muon_runs_a_closure_once_and_returns_its_loss():
    model = network()
    optimizer = build("Muon", model)

    def closure():
        loss = model(torch.ones(1, 3, dtype=torch.float64)).sum()
        loss.backward()
        return loss

    before = weights(model)
    assert optimizer.step(closure).requires_grad and not same(weights(model), before)


def test_a_model_without_hidden_matrices_is_refused_by_muon():
    with pytest.raises(SpecError, match=r"^optimizer\.Muon: Muon is for the weights of hidden Linear layers"):
        build("Muon", nn.Sequential(nn.Conv1d(1, 2, 3), nn.Linear(2, 2)))


def test_muon_alone_or_adamw_alone_will_do():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 2).requires_grad_(False))
    assert [type(part) for part in build("Muon", model).parts] == [torch.optim.Muon]
    assert hidden_matrices(model) == {model[0].weight}
    assert [type(part) for part in Muon([{"params": [torch.zeros(1)]}]).parts] == [torch.optim.AdamW]
