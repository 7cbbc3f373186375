"""Imports point one way, and the core stays free of the outer shells."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

# A module may import from earlier rows and from its own row; families (marked by a dot) only from themselves' package
# and earlier rows, never from a sibling module that is a member too.
ROWS = [
    {"files", "quoting", "shapes", "harmonics"},
    {"types", "rng", "knobs", "errors", "arguments", "machine", "progress", "channel", "compiled", "web"}
    | {"console", "transfer"},
    {"parsing", "decoding"},
    {"pictures", "folders"},
    {"packed"},
    {"cameras", "modes", "noise", "optim", "plane"},
    {"metrics"},
    {"schedule", "guidance", "inversion", "auxiliary"},
    {"toybox"},
    {"meshes"},
    {"losses", "priors", "raster"},
    {"volume"},
    {"density", "starts", "training"},
    {"scenes", "prompts"},
    {"settings"},
    {"step", "options", "own_loss", "export", "links", "examples"},
    {"lens"},
    {"live"},
    {"headless", "viewport", "lessons", "handin"},
    {"ui", "experiments"},
    {"bench", "grading"},
    {"claims", "site"},
    {"cli"},
    {"__main__"},
]
RANK = {name: i for i, row in enumerate(ROWS) for name in row}
FAMILIES = {"auxiliary", "losses", "priors", "raster", "scenes", "ui", "experiments"}


def imports(path: Path) -> set[str]:
    """Dotted names below sdlab that a file imports, `from sdlab.a import b` as sdlab.a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{a.name}" for a in node.names}
    return {n for n in found if n.startswith("sdlab.")}


def test_imports_point_one_way():
    wrong = []
    for path in (ROOT / "sdlab").rglob("*.py"):
        parts = path.relative_to(ROOT / "sdlab").with_suffix("").parts
        own = parts[0]
        if own == "__init__":
            continue
        for name in imports(path):
            other = name.split(".")[1]
            if other == "__version__":
                continue
            same_family = own == other
            both_families = own in FAMILIES and other in FAMILIES
            if RANK[other] > RANK[own] or (RANK[other] == RANK[own] and both_families and not same_family):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_losses_and_scenes_do_not_import_siblings():
    for family in ("losses", "scenes"):
        members = {p.stem for p in (ROOT / "sdlab" / family).glob("*.py")} - {"__init__"}
        for path in (ROOT / "sdlab" / family).glob("*.py"):
            used = {n.split(".")[2] for n in imports(path) if n.startswith(f"sdlab.{family}.")}
            assert not used & members - {path.stem}, f"{path} imports a sibling"


def test_importing_the_package_and_its_core_is_light():
    code = (
        "import sdlab, sdlab.live.session, sdlab.settings, sys; sdlab.settings.Settings();"
        "heavy = {'gradio', 'viser', 'diffusers', 'ray', 'openvino', 'transformers', 'gsplat'} & set(sys.modules);"
        "print(sorted(heavy)); sys.exit(bool(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_help_of_the_command_line_waits_for_no_library():
    code = (
        "import sys; from sdlab.cli import main\n"
        "try: main(['--help'])\n"
        "finally: print(*sorted({'torch', 'numpy', 'numba', 'PIL', 'jaxtyping'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr.split()) == (0, []), done.stderr
    assert "Score Distillation Lab" in done.stdout
