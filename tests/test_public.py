"""What a user may import, and what it costs."""

import subprocess
import sys

import fitkit


def test_the_public_names_are_these():
    assert fitkit.__all__ == sorted(fitkit.__all__, key=lambda name: (name.islower(), name))
    assert {name for name in fitkit.__all__ if name[0].islower()} == {
        "build",
        "diagnose",
        "compare",
        "fit",
        "load",
        "load_spec",
        "lr_find",
        "plan",
        "register",
        "report",
    }
    for name in fitkit.__all__:
        assert getattr(fitkit, name).__doc__, name


def test_importing_fitkit_imports_no_torch():
    code = "import sys, fitkit, fitkit.cli; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_an_unknown_attribute_is_an_attribute_error():
    assert not hasattr(fitkit, "compile")


def test_build_stays_a_function_after_its_package_was_imported():
    import fitkit.builder  # noqa: F401

    assert callable(fitkit.build) and callable(fitkit.fit) and callable(fitkit.load)


def test_the_first_use_of_a_public_name_holds_the_collector_and_leaves_it_as_it_was():
    code = """
import gc, sys, torch
passes = []
gc.callbacks.append(lambda phase, info: passes.append(info["generation"]))
import fitkit
before = len(passes)
fitkit.fit
assert len(passes) == before and gc.isenabled()
assert not {"torch._dynamo", "sympy", "html", "matplotlib"} & set(sys.modules)
gc.disable()
fitkit.plan
assert not gc.isenabled()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
