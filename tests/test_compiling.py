"""Kernels give the same bits where they are compiled and where they come from the cache."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAM = """
import numpy as np, scipy.sparse as sp
from pipeline.arrays.rows import Rows
from pipeline.models.families.gaussian import Gaussian
from pipeline.models.lloyd import Lloyd
from pipeline.models.mixture import Mixture
from pipeline.models.families.multinomial import Multinomial
from pipeline.kernels.cpu import KERNELS

rng = np.random.default_rng(0)
for d, n in ((4, 20_011), (20, 3_001)):  # by SIMD, and by GEMM
    x, means = rng.normal(size=(n, d)), rng.normal(size=(4, d))
    for dtype in (np.float32, np.float64):
        for shape, one in (("full", np.eye(d)), ("diag", np.ones(d)), ("spherical", 1.0), ("tied", None)):
            covariances = np.eye(d) if one is None else np.stack([one] * 4)
            arrays = {"weights": np.full(4, 0.25), "means": means, "covariances": covariances}
            model = Mixture(Gaussian(4, np.zeros(d), shape))
            print(shape, model.e_step(model.params_from_arrays(arrays), Rows(x.astype(dtype)), KERNELS))
        model = Lloyd(4, np.zeros(d))
        print(model.e_step(model.params_from_arrays({"centers": means}), Rows(x.astype(dtype)), KERNELS))
counts = sp.csr_array(rng.poisson(0.3, size=(5_000, 30)).astype(np.float64))
words = {"weights": np.full(4, 0.25), "log_prob": np.log(rng.dirichlet(np.ones(30), size=4))}
model = Mixture(Multinomial(4, 30))
print(model.e_step(model.params_from_arrays(words), Rows(counts), KERNELS))
"""


@pytest.mark.slow
def test_compiled_and_cached_kernels_give_the_same_bits(tmp_path):
    """A process that compiles them, one that finds them in the cache, and one without a cache print the same digits."""
    program = "import numpy as np; np.set_printoptions(floatmode='unique', threshold=10**9)\n" + PROGRAM
    (tmp_path / "file").touch()
    said = []
    for cache in (tmp_path / "cache", tmp_path / "cache", tmp_path / "file"):
        environment = os.environ | {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert len(said[0]) > 10_000
    assert said[0] == said[1] == said[2]


def assigns_arrays_to_slices(source: str) -> list[int]:
    """Lines of compiled functions that assign what may be an array to a slice."""
    found = []
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef) or not {"kernel", "exact_kernel"} & {
            each.id for each in function.decorator_list if isinstance(each, ast.Name)
        }:
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and not isinstance(node.value, ast.Constant | ast.UnaryOp | ast.Attribute):
                found += [
                    node.lineno for each in node.targets for part in ast.walk(each) if isinstance(part, ast.Slice)
                ]
    return found


def test_kernels_copy_arrays_in_loops():
    """No kernel assigns an array to a slice, for which numba compiles 5 s of error messages."""
    copies = "@kernel\ndef f(a, b):\n    a[:] = 0.0\n    a[1:] = b[1:]\n"
    assert assigns_arrays_to_slices(copies) == [4]
    for path in (ROOT / "pipeline" / "kernels").glob("*.py"):
        assert not assigns_arrays_to_slices(path.read_text()), path
