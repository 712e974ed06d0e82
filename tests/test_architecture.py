"""The README's drawing of the architecture is what is built."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pipeline"


def _drawn_layers() -> list[str]:
    """Names in the first column of the README's drawing, from the top down."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Architecture")[1]
    drawing = re.search(r"```\n(cli .*?)```", section, re.DOTALL)
    assert drawing is not None
    return [line.split()[0] for line in drawing[1].splitlines()]


def _layer(module: str) -> str:
    return module.split(".")[1]


def _imports(path: Path) -> set[str]:
    """Layers that a module imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("pipeline"):
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "pipeline" else [node.module]
            )
            found |= {_layer(name) for name in names}
        elif isinstance(node, ast.Import):
            found |= {_layer(alias.name) for alias in node.names if alias.name.startswith("pipeline.")}
    return found


def test_every_part_is_drawn():
    """Each module or package of pipeline/ stands in the drawing, and nothing else does."""
    built = {path.stem for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert set(_drawn_layers()) == {name for name in built if not name.startswith("__")}


def test_parts_import_only_what_stands_below():
    """No module imports a part that is drawn above its own."""
    height = {name: -i for i, name in enumerate(_drawn_layers())}
    for path in PACKAGE.rglob("*.py"):
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if not own.startswith("__"):
            above = {layer for layer in _imports(path) if height[layer] > height[own]}
            assert not above, f"{path.relative_to(ROOT)} imports {above}, drawn above {own}"


def test_distributed_and_dask_are_imported_in_few_places():
    """Only engine/cluster.py and engine/waiting.py import distributed, only engine/passes.py and engine/lazy.py dask."""
    allowed = {
        "distributed": {"engine/cluster.py", "engine/waiting.py"},
        "dask": {"engine/passes.py", "engine/lazy.py"},
    }
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                top = name.split(".")[0]
                if top in allowed:
                    assert str(path.relative_to(PACKAGE)) in allowed[top], f"{path} imports {top}"


def test_modules_are_read_in_one_sitting():
    """No module is longer than about 400 lines."""
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 410, path


# Files that are a family's own: what it is made of, and its class in Python.
FAMILIES_OWN = ("models/families/*", "models/lloyd.py", "models/covariance.py", "models/moments.py", "kernels/*", "estimators/gaussian.py",
                "estimators/hmm.py", "estimators/kmeans.py", "estimators/lda.py", "estimators/multinomial.py", "__init__.py", "estimators/__init__.py")  # fmt: skip
NAMED_ELSEWHERE = 10
ORDINARY = {"factor", "columns"}  # families whose names are words of other things too: only read as a module's


def _names_a_family(path: Path) -> list[int]:
    """Lines of code, not of docstrings, that name a family or a covariance type: in a string, or in a name."""
    stems = {each.stem for each in (PACKAGE / "models/families").glob("*.py")} - {"__init__", "python"}
    families = [rf"families\.{stem}\b" if stem in ORDINARY else stem for stem in sorted(stems)]
    pattern, types = re.compile("|".join(families), re.IGNORECASE), {"full", "tied", "diag", "spherical"}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    found = set()
    for node in ast.walk(tree):
        words = [str(getattr(node, key, "")) for key in ("id", "attr", "arg", "module", "name")]
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            words = ["gaussian"] if node.value in types else [node.value]
        if pattern.search(" ".join(words)):
            found.add(node.lineno)
    return sorted(found)


def test_a_family_is_named_in_its_own_files():
    """What differs by family or covariance type is asked of the model: so a new one is one file."""
    own = {path for pattern in FAMILIES_OWN for path in PACKAGE.glob(pattern)}
    found = {path: _names_a_family(path) for path in PACKAGE.rglob("*.py") if path not in own}
    places = [f"{path.relative_to(ROOT)}:{line}" for path, lines in found.items() for line in lines]
    assert len(places) <= NAMED_ELSEWHERE, places
