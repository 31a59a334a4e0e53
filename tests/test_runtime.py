"""The machine and its environment: precision, threads and memory."""

import os

import pytest

from kgcli import engine, runtime
from kgcli.errors import IncompatibleError, OutOfMemoryError, UsageError
from kgcli.runtime import (
    LARGE_MODEL,
    check_compile,
    choose_dtype,
    choose_threads,
    free_memory,
    has_bfloat16_arithmetic,
    memory_errors,
    set_threads,
)
from kgcli.weights.folder import open_model

SAPPHIRE_RAPIDS = "processor\t: 0\nflags\t\t: fpu sse2 avx2 avx512f avx512_bf16 amx_tile amx_bf16\nbugs\t: none\n"
ZEN3 = "processor\t: 0\nflags\t\t: fpu sse2 avx2\nbugs\t\t: avx512_bf16_in_a_bug\n"


@pytest.mark.parametrize(("content", "found"), [(SAPPHIRE_RAPIDS, True), (ZEN3, False), ("", False)])
def test_a_cpu_has_bfloat16_only_if_it_says_so(tmp_path, content, found):
    (tmp_path / "cpuinfo").write_text(content)
    assert has_bfloat16_arithmetic(tmp_path / "cpuinfo") is found
    assert has_bfloat16_arithmetic(tmp_path / "missing") is False


@pytest.mark.parametrize("has", [True, False])
def test_auto_takes_bfloat16_on_a_cpu_for_large_models_alone(monkeypatch, has):
    monkeypatch.setattr(runtime, "has_bfloat16_arithmetic", lambda: has)
    assert choose_dtype("auto", "cpu", LARGE_MODEL) == ("bfloat16" if has else "float32")
    assert choose_dtype("auto", "cpu", LARGE_MODEL - 1) == "float32"
    assert choose_dtype("auto", "mps", LARGE_MODEL) == "float32"
    assert choose_dtype("float32", "cpu", LARGE_MODEL) == "float32"


def test_small_models_take_one_thread_and_large_ones_the_free_cores():
    assert choose_threads(10**6, load=0.0, num_cores=16) == 1
    assert choose_threads(LARGE_MODEL, load=0.4, num_cores=16) == 16
    assert choose_threads(LARGE_MODEL, load=5.6, num_cores=16) == 11
    assert choose_threads(LARGE_MODEL, load=40.0, num_cores=16) == 1
    assert 1 <= choose_threads(LARGE_MODEL) <= (os.cpu_count() or 1)


def test_threads_are_set_for_our_own_process_and_never_over_the_user(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setenv("OMP_WAIT_POLICY", "")  # restored afterwards
    monkeypatch.delenv("OMP_WAIT_POLICY")
    set_threads(3)
    assert "OMP_NUM_THREADS" not in os.environ
    monkeypatch.setattr(runtime, "own_process", True)
    set_threads(3)
    assert (os.environ["OMP_NUM_THREADS"], os.environ["OMP_WAIT_POLICY"]) == ("3", "PASSIVE")
    set_threads(5)
    assert os.environ["OMP_NUM_THREADS"] == "3"


def test_a_model_of_a_command_is_loaded_on_the_threads_that_are_fastest(monkeypatch, tiny_model):
    """Whichever command it is: all of them load by `engine.load`."""
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setenv("OMP_WAIT_POLICY", "")  # restored afterwards
    monkeypatch.setattr(runtime, "own_process", True)
    monkeypatch.setattr(runtime, "choose_threads", lambda num_bytes: num_bytes)
    folder = open_model(str(tiny_model))
    engine.load(folder, device="cpu")
    assert os.environ.pop("OMP_NUM_THREADS") == str(folder.num_bytes)
    engine.prepare(folder, threads=5)
    engine.load(folder, device="cpu")
    assert os.environ.pop("OMP_NUM_THREADS") == "5"
    engine.load(str(tiny_model), device="cpu")  # by a user's own program
    assert "OMP_NUM_THREADS" not in os.environ
    with pytest.raises(TypeError, match="threads"):  # which a user's own program sets itself
        engine.load(str(tiny_model), device="cpu", threads=4)


@pytest.mark.parametrize("words", ["MPS backend out of memory (MPS allocated 8 GB)", "CUBLAS_STATUS_ALLOC_FAILED"])
def test_a_device_without_memory_is_named_as_such(words):
    with pytest.raises(OutOfMemoryError, match="--batch-size 1"), memory_errors():
        raise RuntimeError(words)
    with pytest.raises(RuntimeError, match="shapes"), memory_errors():
        raise RuntimeError("shapes differ")


def test_compilation_needs_a_compiler_and_weights_that_stay(monkeypatch):
    check_compile(False, "cpu", "model")
    with pytest.raises(UsageError, match="--offload model exclude"):
        check_compile(True, "cuda", "model")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(IncompatibleError, match="C\\+\\+ compiler"):
        check_compile(True, "cpu")
    check_compile(True, "cuda")


def test_free_memory_is_read_where_the_system_tells(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal:  16 kB\nMemAvailable:     2048 kB\n")
    assert free_memory(tmp_path / "meminfo") == 2 * 2**20
    assert free_memory(tmp_path / "missing") is None
