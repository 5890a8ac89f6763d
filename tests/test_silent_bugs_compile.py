"""Bugs that train without a complaint, under torch.compile: silent recompilation, and keys that no other model has."""

import json

import pytest
import torch
from safetensors.torch import load_file
from small_fit import labels, linear, numbers, spec
from torch import nn

import fitkit
from fitkit.engine.private import compile_graph, compiled_forward

# One fit for all: to compile takes ten seconds and more. torch itself uses what it has deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.skipif(" " in torch.__file__, reason="torch.compile does not work from a path with a space"),
]
ARGUMENTS = numbers(8, 5).float(), numbers(5, 6).float(), numbers(8, 6).float()
DATA = {"train": (numbers(10, 4), labels(3, 10)), "val": (numbers(6, 4), labels(3, 6))}


def network():
    return linear(4, 5, nn.Tanh(), nn.LayerNorm(5), *linear(5, 3, seed=1)).double()


def wanted(**fit):
    return spec(batch_size=4, epochs=3, callbacks={"EMA": {"decay": 0.5}}, **fit)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Fit with ragged last batches; from the end of epoch 1 on, a recompilation is an error."""
    out, module = tmp_path_factory.mktemp("compiled") / "run", network()
    forbid = fitkit.LambdaCallback(on_epoch_end=lambda t: torch.compiler.set_stance("fail_on_recompile"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    try:
        history = fitkit.Model(module).fit(wanted(compile=True), data=DATA, out=out, callbacks=[forbid])
    finally:
        torch.compiler.set_stance("default")
    return history, module, out, torch._dynamo.utils.counters["stats"]["unique_graphs"]


def test_nothing_is_compiled_again_after_the_first_epoch(compiled):
    """C12: a ragged batch or the change to eval mode recompiles once each; at the limit Dynamo silently runs eager."""
    history, _, _, graphs = compiled
    assert len(history) == 3
    assert 1 <= graphs <= 4


def test_a_compiled_fit_gives_the_numbers_of_an_eager_one_and_says_that_it_is_compiled(compiled, tmp_path):
    """C12: the files say what was used."""
    history, module, out, _ = compiled
    eager = network()
    expected = fitkit.Model(eager).fit(wanted(compile=False), data=DATA, out=tmp_path / "run")
    for column in ("loss", "val_loss"):
        assert history[column] == pytest.approx(expected[column], rel=1e-9)
    for found, parameter in zip(module.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(found, parameter, rtol=1e-8, atol=1e-10)
    for folder, used in ((out, "whole steps"), (tmp_path / "run", "")):
        assert json.loads((folder / "env.json").read_text())["compiled"] == used


def test_the_weights_of_a_compiled_fit_have_the_names_of_the_model(compiled):
    """C13: no `_orig_mod.` in the keys; the file loads into an eager model, averages included."""
    _, module, out, _ = compiled
    names = set(network().state_dict())
    assert set(module.state_dict()) == names
    assert not [name for name in load_file(out / "model.safetensors") if "_orig_mod" in name]
    loaded = fitkit.load(out, model=network())
    assert torch.equal(loaded.outputs(DATA["val"][0]), fitkit.Model(module).outputs(DATA["val"][0]))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("make", [compiled_forward, lambda f: compile_graph(f, ARGUMENTS, guarded=True).call])
def test_what_is_added_to_a_product_of_matrices_keeps_its_factor(make, sign):
    """Torch 2.13 makes an addmm of it that forgets alpha, where the product comes first."""

    def add(left, right, bias):
        return (torch.add if sign == 1 else torch.sub)(left @ right, bias, alpha=0.25)

    torch.testing.assert_close(make(add)(*ARGUMENTS), ARGUMENTS[0] @ ARGUMENTS[1] + sign * 0.25 * ARGUMENTS[2])
