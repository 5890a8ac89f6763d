"""What a run needs, told before it starts: exact where it can be, near where it cannot, and refused in time."""

import json

import pytest
import torch
from small_fit import Noisy
from torch import nn

import fitkit
from fitkit import files
from fitkit.builder import begin, finish, load_spec, size
from fitkit.builder.outline import Outline
from fitkit.builder.tables import TABLES
from fitkit.cli import main

CPU = {"device": "cpu", "batch_size": 16}
IMAGES = torch.zeros(64, 3, 16, 16), torch.arange(64) % 5
TOKENS = torch.arange(64 * 12).reshape(64, 12) % 50, torch.arange(64) % 5
SERIES = torch.zeros(64, 12, 6), torch.arange(64) % 5
TABLE = torch.linspace(-1, 1, 64 * 8).reshape(64, 8), torch.arange(64) % 5
ENCODER = [{"TransformerEncoderLayer": {"nhead": 2, "dim_feedforward": 64}}, "Mean", {"Linear": "outputs"}]
MODELS = {
    "mlp": ({"mlp": {"hidden": [64, 64], "norm": "LayerNorm", "dropout": 0.1}}, TABLE),
    "cnn": ("cnn", IMAGES),
    "resnet20": ("resnet20", IMAGES),
    "lstm": ("lstm", SERIES),
    "deep lstm": ({"lstm": {"depth": 2, "bidirectional": True, "dropout": 0.1}}, TOKENS),
    "gru": ([{"GRU": {"hidden_size": 32, "num_layers": 2}}, "Last", {"Linear": "outputs"}], SERIES),
    "rnn": ([{"RNN": 32}, "Last", {"Linear": "outputs"}], SERIES),
    "transformer": ("transformer", TOKENS),
    "transformer without dropout": ({"transformer": {"dropout": 0.0}}, SERIES),
    "encoder": (ENCODER, SERIES),
}


def outlined(model, data, **more):
    given = more.pop("fit", {})
    return begin(load_spec({"model": model, "fit": {**CPU, **given}, **more}), None, data)


def estimated(begun):
    return begun.size(begun.sketch().model)


def really_saved(begun):
    """Return the bytes that autograd saves in a real forward pass, without what is there anyway."""
    trainer = finish(begun, None)
    x, y = begun.prepared.first
    there = {t.untyped_storage().data_ptr() for t in [*trainer.model.parameters(), *trainer.model.buffers(), x]}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in there:
            saved[storage.data_ptr()] = storage
        return tensor

    trainer.model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        trainer.objective.forward(trainer.model, x, y, True)
    return sum(storage.nbytes() for storage in saved.values())


@pytest.mark.parametrize("name", MODELS)
def test_activations_are_near_what_autograd_really_saves(name):
    begun = outlined(*MODELS[name])
    found, real = estimated(begun), really_saved(begun)
    assert real / 1.5 < found.saved < 1.5 * real
    assert found.activations >= found.saved


def test_what_a_batch_takes_grows_with_the_batch():
    once, twice = (estimated(outlined("cnn", IMAGES, fit={"batch_size": n})) for n in (16, 32))
    assert 1.9 < twice.saved / once.saved < 2.1 and twice.batch == 2 * once.batch
    assert twice.fixed == once.fixed


@pytest.mark.parametrize("optimizer", TABLES["optimizers"])
def test_the_state_of_every_optimizer_is_counted_exactly(optimizer):
    begun = outlined("transformer", TOKENS, optimizer=optimizer)
    found, trainer = estimated(begun), finish(begun, None)
    for parameter in trainer.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    trainer.optimizer.step()
    states = [t for state in trainer.optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
    assert found.optimizer == sum(t.numel() * t.element_size() for t in states) or optimizer == "SGD"
    numbers = [*trainer.model.parameters(), *trainer.model.buffers()]
    assert found.weights == sum(t.numel() * t.element_size() for t in numbers)
    assert found.gradients == sum(t.numel() * t.element_size() for t in trainer.model.parameters())


def test_momentum_ema_and_the_best_epoch_are_counted():
    more = {"optimizer": {"SGD": {"lr": 0.1, "momentum": 0.9}}, "callbacks": "EMA"}
    found = estimated(outlined("mlp", TABLE, **more))
    assert found.optimizer == found.gradients == found.weights
    assert found.copies == 2 * found.weights


@pytest.fixture
def little_memory(monkeypatch):
    monkeypatch.setattr(files, "available_memory", lambda: 2_000_000)


@pytest.fixture
def no_model(monkeypatch):
    monkeypatch.setattr(fitkit.builder, "finish", lambda *_: pytest.fail("the model was built"))


def test_a_model_that_does_not_fit_is_refused_before_it_is_built(little_memory, no_model):
    with pytest.raises(fitkit.SpecError, match=r"^model: 1,015,005 parameters take 20.6 MB to train \(weights 4"):
        fitkit.build({"model": [{"Linear": 1000}, {"Linear": 1000}, {"Linear": "outputs"}], "fit": CPU}, data=TABLE)


def test_a_batch_that_does_not_fit_is_refused_and_the_largest_that_fits_is_said(little_memory, no_model):
    with pytest.raises(fitkit.SpecError, match=r"^fit.batch_size: a batch of 32 takes .* Write \d+, or take") as caught:
        fitkit.build({"model": {"cnn": [32]}, "fit": {**CPU, "batch_size": 32}}, data=IMAGES)
    most = int(str(caught.value).partition("Write ")[2].partition(",")[0])
    Outline.refuse_too_large(outlined({"cnn": [32]}, IMAGES, fit={"batch_size": most}))
    Outline.refuse_too_large(outlined({"cnn": [32]}, IMAGES, fit={"batch_size": 32, "out_of_memory": "halve"}))


def test_no_memory_is_taken_for_a_model_that_no_machine_holds(no_model):
    layers = [{"Embedding": {"embedding_dim": 64, "num_embeddings": 10**12}}, "Mean", {"Linear": "outputs"}]
    with pytest.raises(fitkit.SpecError, match="^model: 64,000,000,000,325 parameters take 1,280 TB to train"):
        fitkit.build({"model": layers, "fit": CPU}, data=TOKENS)


@pytest.mark.parametrize(
    "layer",
    [{"Upsample": {"scale_factor": 1e5}}, {"AdaptiveAvgPool2d": 10**6}, {"LocalResponseNorm": 10**12}],
)
def test_a_layer_whose_result_no_machine_holds_is_refused(layer, no_model):
    with pytest.raises(fitkit.SpecError, match=r"activations|asks for more memory than any machine"):
        layers = [layer, {"AdaptiveAvgPool2d": 1}, "Flatten", {"Linear": "outputs"}]
        fitkit.build({"model": layers, "fit": CPU}, data=IMAGES)


def test_a_model_that_fails_later_is_refused_for_what_comes_before(little_memory, no_model):
    with pytest.raises(fitkit.SpecError, match=r"^model: takes more than the 2 MB that are available"):
        fitkit.build({"model": [{"Linear": 10**6}, "BatchNorm2d"], "fit": CPU}, data=TABLE)


def test_small_models_are_not_run_for_it(monkeypatch):
    monkeypatch.setattr(size, "measure", lambda *_: pytest.fail("a batch was run"))
    monkeypatch.setattr(files, "available_memory", lambda: 4_000_000_000)
    for model, data in MODELS.values():
        fitkit.build({"model": model, "fit": {**CPU, "check_data": False}}, data=data)


@pytest.mark.parametrize("name", MODELS)
def test_the_rule_for_small_models_counts_at_least_what_they_need(name):
    begun = outlined(*MODELS[name])
    drawn, found = begun.sketch(), estimated(begun)
    assert not size.is_small(drawn, begun.spec, begun.prepared.first[0], 2 * (found.needed - found.batch))


def test_the_random_state_is_left_as_it_was():
    before = torch.get_rng_state()
    fitkit.plan({"model": "mlp", "fit": CPU}, data=TABLE)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_plan_says_parameters_memory_steps_and_time():
    found = fitkit.plan({"data": "iris", "model": {"mlp": [8]}, "fit": {**CPU, "epochs": 3}})
    assert found.parameters == found.trainable == 4 * 8 + 8 + 8 * 3 + 3
    assert found.memory["weights"] == found.memory["gradients"] == 4 * found.parameters
    assert found.needed == sum(found.memory.values()) and found.fits
    assert found.steps == 3 * found.steps_per_epoch and found.most_batch > found.samples
    assert found.seconds > found.epoch_seconds > found.step_seconds > 0 and found.evaluation_seconds > 0
    text = str(found)
    assert text.startswith("iris" if found.name == "iris" else "run: cpu, float32, ") and text.endswith("\nfits.")
    assert f"{found.parameters} parameters" in text or f"parameters: {found.parameters}" in text


def test_a_plan_of_a_module_leaves_the_module_as_it_was():
    module = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 5))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    found = fitkit.plan({"fit": CPU}, module, TABLE)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())
    assert found.parameters == sum(p.numel() for p in module.parameters()) and found.memory["activations"] > 0


def test_what_is_not_known_is_said():
    class Sparse(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 5)

        def forward(self, x):
            return self.linear(x) * bool(x.sum() > 0)

    found = fitkit.plan({"fit": CPU}, Sparse(), TABLE)
    assert found.memory["activations"] is None and found.most_batch is None and found.fits
    assert "not known" in str(found) and "together at least" in str(found)
    found = fitkit.plan({"fit": CPU}, nn.Linear(4, 2).double(), Noisy(40))
    assert found.data is None and found.precision == "float64"


def test_a_registered_model_is_built_once(little_memory):
    built = []

    @fitkit.register.model
    def counted(inputs, outputs):
        """A model that counts."""
        built.append(1)
        return nn.Linear(inputs.shape[0], outputs)

    try:
        assert fitkit.plan({"model": "counted", "fit": CPU}, data=TABLE).parameters == 45
        assert built == [1]
    finally:
        del TABLES["models"]["counted"]


def test_the_command_writes_nothing_and_answers_in_json(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text("data: iris\nmodel: {mlp: [4]}\ncallbacks: {CSVLogger: {filename: a.csv}}\n")
    assert main(["plan", "small.yaml", "fit.device=cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["name"] == "small" and found["parameters"] == 35 and found["fits"] is True
    assert [path.name for path in tmp_path.iterdir()] == ["small.yaml"]


def test_a_plan_that_does_not_fit_exits_with_2_and_is_not_tried(tmp_path, monkeypatch, capsys, little_memory):
    monkeypatch.setattr(fitkit.Trainer, "fit", lambda *_: pytest.fail("a step was tried"))
    (tmp_path / "big.yaml").write_text("data: iris\nmodel: {mlp: [1000, 1000]}\nfit: {device: cpu}\n")
    assert main(["plan", str(tmp_path / "big.yaml")]) == 2
    out = capsys.readouterr().out
    assert "of 2 MB that are available" in out and out.rstrip().rpartition("\n")[2].startswith("does not fit: take a")
    assert "time of" not in out


def test_the_time_of_a_plan_is_that_of_a_fit():
    spec = {"data": {"synthetic": {"samples": 2000}}, "model": "mlp", "fit": {**CPU, "epochs": 2}}
    found, history = fitkit.plan(spec), fitkit.fit(spec)
    assert found.steps == 2 * found.steps_per_epoch
    assert history["epoch_seconds"][-1] / 8 < found.epoch_seconds < 8 * history["epoch_seconds"][-1]


def test_synthetic_data_that_do_not_fit_are_not_made(little_memory):
    with pytest.raises(fitkit.SpecError, match="^data.synthetic: a table of 100,000,000 samples and 20 "):
        fitkit.build({"data": {"synthetic": {"samples": 10**8}}, "model": "mlp", "fit": CPU})


def test_a_weights_file_whose_model_makes_more_than_the_memory_holds_is_not_rebuilt(tmp_path, monkeypatch):
    layers = [{"Upsample": {"size": 16}}, {"AdaptiveAvgPool2d": 1}, "Flatten", {"Linear": "outputs"}]
    fitkit.fit({"model": layers, "fit": {**CPU, "epochs": 1}}, data=IMAGES, out=tmp_path / "run")
    raw = (tmp_path / "run" / "model.safetensors").read_bytes()
    changed = raw.replace(b'\\"size\\": 16,', b'\\"size\\":999999,')
    header = int.from_bytes(raw[:8], "little") + len(changed) - len(raw)
    (tmp_path / "w.safetensors").write_bytes(header.to_bytes(8, "little") + changed[8:])
    with pytest.raises(fitkit.CheckpointError, match="the model of its card takes 24,000"):
        fitkit.load(tmp_path / "w.safetensors")
