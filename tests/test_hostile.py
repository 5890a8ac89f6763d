"""A stranger's spec, data file, weights, checkpoint or run folder runs no code, reads and writes nothing elsewhere,
and ends in one error of ours within 2 s and 200 MB. How it is watched: hostile/runner.py, hostile/strace.py.
"""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hostile import controls, runner
from hostile.case import SPEC, TABLE, bomb
from hostile.files import FILES
from hostile.runs import RUNS
from hostile.specs import SPECS
from hostile.strace import faults

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the harness reads /proc and makes pipes and links")


@pytest.fixture(scope="module")
def outcomes():
    """Every case by every way in, and the controls, in a few processes at once."""
    found = {}
    for outcome in runner.run([*runner.CORPUS, *controls.CASES]):
        found.setdefault(outcome.case, []).append(outcome)
    return found


def test_the_corpus_is_as_large_as_is_said():
    assert len(SPECS) >= 60 and len(FILES) >= 40 and len(RUNS) >= 120
    assert len(runner.CORPUS) == len(SPECS) + len(FILES) + len(RUNS), "two cases have one name"
    assert not runner.CORPUS.keys() & controls.CASES.keys()


@pytest.mark.parametrize("case", runner.CORPUS.values(), ids=lambda case: case.name)
def test_an_attack_ends_in_one_error_and_nothing_else(case, outcomes):
    assert [f"{o.way}: {o.ended}: {'; '.join(o.faults)}: {o.said}" for o in outcomes[case.name] if o.faults] == []
    assert [outcome.way for outcome in outcomes[case.name]] == list(case.ways)


@pytest.mark.parametrize("name", controls.CONTROLS)
def test_the_harness_notices_what_a_hole_would_do(name, outcomes):
    told = " ".join(fault for outcome in outcomes[name] for fault in outcome.faults)
    assert controls.CONTROLS[name][1] in told


def test_the_bomb_of_the_corpus_is_a_real_one(tmp_path):
    (tmp_path / "bomb.pkl").write_bytes(pickle.dumps(bomb()))
    code = "import pickle; pickle.load(open('bomb.pkl', 'rb'))"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=60)
    assert (tmp_path / "pwned").exists()


def test_the_command_imports_nothing_from_the_folder_in_which_it_is_started(tmp_path):
    command = Path(sys.executable).with_name("fitkit")
    if not command.is_file():
        pytest.skip(f"{command} is not installed")
    for module in ("torch", "yaml", "numpy", "json", "fitkit", "matplotlib", "sitecustomize", "safetensors"):
        (tmp_path / f"{module}.py").write_text("open('pwned', 'w').close()\n")
    (tmp_path / "data.csv").write_text(TABLE)
    (tmp_path / "spec.yaml").write_text(SPEC)
    done = subprocess.run([command, "check", "spec.yaml"], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "pwned").exists()


LOG = """\
7 openat(AT_FDCWD</w/box>, "/hostile-mark/check/a case", O_RDONLY) = -1 ENOENT
7 openat(AT_FDCWD</w/box>, "spec.yaml", O_RDONLY|O_CLOEXEC) = 3</w/box/spec.yaml>
{}
7 openat(AT_FDCWD</w/box>, "/hostile-mark/end", O_RDONLY) = -1 ENOENT
7 openat(AT_FDCWD</w>, "/etc/passwd", O_RDONLY) = 3</etc/passwd>
"""


@pytest.mark.parametrize(
    "line",
    [
        '7 openat(AT_FDCWD</w/box>, "/etc/passwd", O_RDONLY) = 3</etc/passwd>',
        '7 openat(AT_FDCWD</w/box>, "../outside/secret.csv", O_RDONLY) = 3</w/outside/secret.csv>',
        '7 openat(AT_FDCWD</w/box>, "link.csv", O_RDONLY) = 3</w/outside/secret.csv>',
        '8 openat(5</w/outside>, "secret.csv", O_RDONLY) = 3</w/outside/secret.csv>',
        '7 openat(AT_FDCWD</w/box>, "/proc/self/environ", O_RDONLY) = 3</proc/7/environ>',
        '7 execve("/bin/sh", ["sh", "-c", "touch pwned"], 0x7ffd /* 9 vars */) = 0',
        "7 clone(child_stack=NULL, flags=CLONE_CHILD_CLEARTID|SIGCHLD, child_tidptr=0x7f) = 9",
        "7 socket(AF_INET, SOCK_STREAM|SOCK_CLOEXEC, IPPROTO_IP) = 3<TCP:[1]>",
        '7 unlink("/w/outside/keep.txt") = 0',
    ],
)
def test_the_reader_of_strace_notices(line):
    assert [way for way, _ in faults(LOG.format(line).splitlines())] == ["check/a case"]


def test_the_reader_of_strace_lets_a_case_read_what_is_its_own():
    thread = "7 clone3({flags=CLONE_VM|CLONE_FS|CLONE_THREAD|CLONE_SETTLS}, 88) = 9"
    assert list(faults(LOG.format(thread).splitlines())) == []
