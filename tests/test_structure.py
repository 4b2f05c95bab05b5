"""The house stays in order: import direction, layers of the C++ core, one stem in every place."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "esmm_fast"
CORE = ROOT / "csrc"

# The way the data takes. A module imports only modules that stand before it.
ORDER = [
    "machine",
    "_compiled",
    "_library",
    "schema",
    "plan",
    "gradient_queue",
    "reference",
    "ops",
    "vocabulary",
    "bags",
    "batch",
    "data.columns",
    "data.batches",
    "data.manifest",
    "data.published",
    "config",
    "data.log_format",
    "staging",
    "data.record_batches",
    "progress",
    "data.inputs",
    "data.find_logs",
    "data.log_report",
    "data.logs",
    "data.table_columns",
    "data.table_source",
    "data.tables",
    "data.synth",
    "data.dataset",
    "data.dataset_files",
    "data.shards",
    "data.merge_shards",
    "data.prepare_log",
    "embedding",
    "embedding_bag",
    "optim",
    "tower_pass",
    "tower",
    "model",
    "networks",
    "counterfactual",
    "metrics",
    "calibration",
    "evaluation",
    "early_stopping",
    "schedule",
    "comparison.intervals",
    "train",
    "run.nested",
    "run.checkpoint",
    "samplers",
    "methods",
    "catalogue",
    "run.memory",
    "run.interruption",
    "run.log",
    "run.session",
    "run.run",
    "run.predict",
    "comparison.records",
    "comparison.results",
    "comparison.runner",
    "comparison.experiment",
    "comparison.plots",
    "comparison.report_tables",
    "comparison.report",
    "quickstart",
    "cli.printing",
    "cli.options",
    "cli.data",
    "cli.run",
    "cli.comparison",
    "cli.main",
]
DATA_SIDE = {"data.logs", "data.synth", "data.dataset", "data.prepare_log", "batches"}
WHOLE = ("ops", "reference")
MODEL_SIDE = {
    "reference",
    "ops",
    "embedding",
    "embedding_bag",
    "optim",
    "tower_pass",
    "tower",
    "model",
    "networks",
    "counterfactual",
}


def name_of(path: Path) -> str:
    """Returns a module's name in ORDER; operators and references are one name each."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0] if parts[0] in WHOLE else ".".join(parts)


def imports_of(path: Path) -> set[str]:
    """Modules of the package that a file imports, wherever the import stands."""
    found = set()
    here = path.relative_to(PACKAGE).parts
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        module = (node.module or "").split(".") if node.module else []
        if node.level:
            module = [*here[: len(here) - node.level], *module]
        elif module[:1] == ["esmm_fast"]:
            module = module[1:]
        else:
            continue
        for alias in node.names:
            target = PACKAGE.joinpath(*module, alias.name)
            whole = (
                target if target.with_suffix(".py").exists() or target.is_dir() else target.parent
            )
            if whole != PACKAGE:
                found.add(name_of(whole))
    return found - {"data", "run", "comparison", "cli"}


def modules() -> dict[str, set[str]]:
    imports: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        name = name_of(path)
        if path.stem not in ("__init__", "__main__") or name in WHOLE:
            imports.setdefault(name, set()).update(imports_of(path) - {name})
    return imports


def test_imports_go_one_way() -> None:
    imports = modules()
    assert sorted(imports) == sorted(ORDER), (
        "a module is missing in ORDER, or stands there without a file"
    )
    against = {
        (name, other)
        for name, others in imports.items()
        for other in others
        if ORDER.index(other) >= ORDER.index(name)
    }
    assert not against


def test_data_side_and_model_side_do_not_know_each_other() -> None:
    imports = modules()
    data_side = {name for name in imports if name.startswith("data.")}
    for name in data_side:
        assert not imports[name] & MODEL_SIDE, name
    for name in MODEL_SIDE | {"train"}:
        assert not imports[name] & data_side, name


@pytest.mark.parametrize("room", ["kernels", "batches", "log"])
def test_core_is_free_of_torch_and_python(room: str) -> None:
    sources = [
        p for p in (CORE / room).iterdir() if p.suffix in {".h", ".cpp", ".inc", ".cu", ".cuh"}
    ]
    assert sources
    for path in sources:
        includes = re.findall(r'#include\s*[<"]([^>"]+)', path.read_text())
        assert not [i for i in includes if i.startswith(("torch/", "ATen/", "c10/"))], path
        if not path.name.startswith("_native"):
            assert not [i for i in includes if i.startswith(("pybind11", "Python.h"))], path


def stems() -> list[str]:
    return sorted(p.stem for p in (PACKAGE / "ops").glob("*.py") if p.stem != "__init__")


def test_every_schema_belongs_to_a_stem() -> None:
    ops = re.findall(r'm\.def\(\s*"(\w+)\(', (CORE / "library.cpp").read_text())
    assert ops
    orphans = [op for op in ops if not any(op == s or op.startswith(f"{s}_") for s in stems())]
    assert not orphans


@pytest.mark.parametrize("stem", stems())
def test_every_operator_has_all_its_places(stem: str) -> None:
    for place in (
        PACKAGE / "reference" / f"{stem}.py",
        ROOT / "tests" / f"test_{stem}.py",
        ROOT / "bench" / f"{stem}.py",
        CORE / "ops" / f"{stem}.cpp",
    ):
        assert place.exists(), place


def project_files() -> list[Path]:
    rooms = (PACKAGE, CORE, ROOT / "bench", ROOT / "tests")
    suffixes = {".py", ".h", ".cpp", ".inc", ".cu", ".cuh"}
    return [p for room in rooms for p in room.rglob("*") if p.suffix in suffixes]


def test_every_file_says_in_its_first_line_what_is_in_it() -> None:
    silent = [p for p in project_files() if not re.match(r'"""\S|// \S|r"""\S', p.read_text())]
    assert not silent


def test_a_file_fits_in_the_head() -> None:
    long = {}
    for path in project_files():
        lines = path.read_text().count("\n")
        if lines > (600 if path.parent.name == "tests" else 470):
            long[path.name] = lines
    assert not long


def test_no_room_without_a_name() -> None:
    nameless = {"utils", "util", "common", "core", "base", "misc", "helpers"}
    assert not [p for p in project_files() if p.stem in nameless or p.parent.name in nameless]
