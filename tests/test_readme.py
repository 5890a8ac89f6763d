"""The README's Python examples run as they stand, and what it says of the command line is what that prints."""

import re
from pathlib import Path

import pytest

from fitkit.builder.tables import metrics
from fitkit.cli import main

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.S)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: text.split("\n")[1][:40])
def test_an_example_of_the_readme_runs(example, tmp_path, monkeypatch, capsys):
    (tmp_path / "specs").symlink_to(ROOT / "specs")
    monkeypatch.chdir(tmp_path)
    code = compile(example.replace('"runs/mine"', repr(str(tmp_path / "mine"))), "README.md", "exec")
    exec(code, {})
    metrics.pop("within", None)
    assert capsys.readouterr().out


def test_the_readme_shows_the_messages_that_check_prints(tmp_path, monkeypatch, capsys):
    shown = re.search(r"\$ fitkit check typo.yaml\n(.*?)```", TEXT, re.S)[1]
    monkeypatch.chdir(tmp_path)
    text = "data: digits\nmodel: MLP\noptimizer: {AdamW: {learning_rate: 1e-3}}\nfit: {max_epochs: 3}\n"
    (tmp_path / "typo.yaml").write_text(text)
    assert main(["check", "typo.yaml"]) == 2
    for line, printed in zip(shown.splitlines(), capsys.readouterr().err.splitlines(), strict=True):
        assert printed.startswith(line), printed


def test_the_spec_in_the_readme_is_one():
    import fitkit

    fitkit.load_spec(re.search(r"```yaml\n(.*?)```", TEXT, re.S)[1])
