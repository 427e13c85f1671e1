"""Everything public is importable from the package root or a named module, and listed in `__all__`."""

import ast
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import webai_api

ROOT = Path(webai_api.__file__).parent
MODULES = sorted(path for path in ROOT.rglob("*.py") if not path.name.startswith("__main__"))
THIRD_PARTIES = ("aiohttp", "hiredis", "httptools", "httpx", "msgspec", "openai", "pytest", "redis", "uvicorn")


def test_public_names_are_complete() -> None:
    public = [n for n, v in vars(webai_api).items() if not n.startswith("_") and not isinstance(v, ModuleType)]
    assert set(public) <= set(webai_api.__all__)
    assert list(webai_api.__all__) == sorted(set(webai_api.__all__))


@pytest.mark.parametrize("name", webai_api.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(webai_api, name) is not None


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_lists_its_public_classes_and_functions(path: Path) -> None:
    """Read, not imported: a module may need an extra that is not installed."""
    tree = ast.parse(path.read_text())
    listed: list[str] = []
    defined: set[str] = set()
    named: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            defined.add(node.name)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            if node.targets[0].id == "__all__":
                listed = ast.literal_eval(node.value)
            named.add(node.targets[0].id)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            named.add(node.target.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            named |= {alias.asname or alias.name for alias in node.names}
    lazy = "__getattr__" in defined
    assert {name for name in defined if not name.startswith("_")} <= set(listed)
    assert lazy or set(listed) <= defined | named
    assert not [name for name in listed if name.startswith("_")]
    assert len(set(listed)) == len(listed)


def test_importing_the_package_imports_no_third_party_package() -> None:
    program = f"import sys, webai_api, webai_api.stores.memory; print([m for m in {THIRD_PARTIES} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert done.stdout.strip() == "[]"
