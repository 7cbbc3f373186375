"""What a deployment reads: the README's front matter against the Hub's rules, the Dockerfile, the shell scripts."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import gradio
import pytest
import yaml
from huggingface_hub import SpaceHardware
from huggingface_hub.utils import validate_repo_id
from packaging.requirements import Requirement
from PIL import Image

from sdlab.experiments import card
from sdlab.priors.diffusers import DiffusersPrior
from sdlab.raster.gsplat_kernels import PIP_PACKAGES
from sdlab.settings import preset
from sdlab.ui.visitors import GPU_PRESET

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
SCRIPTS = [ROOT / ".ci" / "run"]

# https://huggingface.co/docs/hub/spaces-config-reference
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
KEYS = {
    *("title", "emoji", "colorFrom", "colorTo", "sdk", "python_version", "sdk_version", "suggested_hardware"),
    *("suggested_storage", "app_file", "app_build_command", "app_port", "base_path", "fullWidth", "header"),
    *("short_description", "models", "datasets", "tags", "thumbnail", "pinned", "hf_oauth", "hf_oauth_scopes"),
    *("hf_oauth_expiration_minutes", "disable_embedding", "startup_duration_timeout", "custom_headers"),
    *("preload_from_hub", "license"),
}
LONGEST_DESCRIPTION = 60  # characters; the Hub refuses a push with more
ZEROGPU_PYTHONS = ("3.10", "3.12")
THUMBNAIL = re.compile(r"^thumbnail: https://huggingface\.co/spaces/ACCOUNT/SPACE/resolve/main/(.+)$", re.MULTILINE)


def front_matter() -> dict[str, Any]:
    """The settings of a Space, read as the Hub reads them."""
    found = re.match(r"---\n(.*?)\n---\n", README, re.DOTALL)
    assert found is not None
    return yaml.safe_load(found[1])


def test_the_front_matter_follows_the_hubs_rules():
    said = front_matter()
    assert said.keys() <= KEYS
    assert {said["colorFrom"], said["colorTo"]} <= COLOURS
    assert len(said["short_description"]) <= LONGEST_DESCRIPTION
    assert re.fullmatch(r"[^\w\s]+", said["emoji"])
    assert said["sdk"] == "gradio"
    assert (ROOT / said["app_file"]).is_file()
    assert said["suggested_hardware"] in {hardware.value for hardware in SpaceHardware}
    assert said["license"] == "mit"
    assert all(re.fullmatch(r"[a-z0-9-]{2,40}", tag) for tag in said["tags"])
    assert len(set(said["tags"])) == len(said["tags"])


def test_its_versions_are_ours_and_zerogpus():
    said = front_matter()
    needs = [Requirement(line.partition("#")[0]) for line in lines_of("requirements.txt")]
    wanted = next(need for need in needs if need.name == "gradio")
    assert wanted.specifier.contains(said["sdk_version"])
    assert said["sdk_version"] == gradio.__version__, "the one that the tests run with"
    assert said["python_version"].startswith(ZEROGPU_PYTHONS)
    python = Requirement("python" + tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"])
    assert python.specifier.contains(said["python_version"])


def lines_of(name: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def test_its_models_are_those_that_a_space_downloads():
    models = front_matter()["models"]
    for name in models:
        validate_repo_id(name)
    prior = preset(GPU_PRESET).prior
    assert isinstance(prior, DiffusersPrior)
    assert models == [prior.path]


def test_the_thumbnail_that_a_space_may_add_is_a_picture_that_the_program_makes(tmp_path: Path):
    assert "thumbnail" not in front_matter(), "it needs an address, which has the owner's name"
    found = THUMBNAIL.search((ROOT / "docs" / "deploy.md").read_text(encoding="utf-8"))
    assert found is not None
    with Image.open(ROOT / found[1]) as kept, Image.open(card.make(tmp_path / "card.png")) as made:
        assert kept.size == made.size == (1200, 630)
        assert kept.convert("RGB").tobytes() == made.convert("RGB").tobytes()
    assert (ROOT / found[1]).stat().st_size < 300_000


# ---- the Dockerfile --------------------------------------------------------------------------------------


def tool(name: str) -> str:
    """Return the path of a linter, of this environment or the system; skip without."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which(name, path=places)
    if found is None:
        pytest.skip(f"{name} is not installed: pip install -r tests/requirements.txt")
    return found


def test_hadolint_finds_nothing_in_the_dockerfile():
    done = subprocess.run([tool("hadolint"), "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_shellcheck_finds_nothing_in_scripts(script: Path):
    done = subprocess.run([tool("shellcheck"), script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_all_shell_scripts_are_checked():
    found = [ROOT / name for name in tracked() if (ROOT / name).is_file() and _is_script(ROOT / name)]
    assert found == SCRIPTS


def tracked() -> list[str]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("this is no checkout")
    return done.stdout.splitlines()


def _is_script(path: Path) -> bool:
    with path.open("rb") as file:
        return re.match(rb"#!.*sh\n", file.readline(100)) is not None


def test_the_dockerfile_has_what_a_space_needs():
    final = DOCKERFILE.rpartition("\nFROM ")[2]
    assert re.search(r"^RUN useradd .*--uid 1000 ", final, re.MULTILINE)
    assert re.search(r"^USER 1000$", final, re.MULTILINE)
    assert re.search(r"^EXPOSE 7860$", final, re.MULTILINE)
    assert "127.0.0.1:7860" in final.partition("HEALTHCHECK")[2]
    assert '"--port", "7860"' in final.partition("ENTRYPOINT")[2]
    for source in re.findall(r"^COPY (?:--\S+ )*(\S+) \S+$", DOCKERFILE, re.MULTILINE):
        assert source.startswith("/opt/") or (ROOT / source).exists()


def test_the_dockerfile_builds_the_versions_that_have_been_built_together():
    table = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    torch, nvcc, gsplat, python = re.findall(
        r"^\| ([\d.]+) \(CUDA 13\.0\) \| ([\d.]+), .*? \| ([\d.]+) \| ([\d.]+) \|", table, re.MULTILINE
    )[0]
    assert f'"torch=={torch}" "gsplat=={gsplat}"' in DOCKERFILE
    assert DOCKERFILE.count(f"\nFROM python:{python}-") == 2
    assert nvcc.startswith("13.0.")
    for package in PIP_PACKAGES["13.0"].split():
        assert f'"{package}"' in DOCKERFILE
    both = [part for part in DOCKERFILE.split("\nFROM ") if "TORCH_CUDA_ARCH_LIST=$GPUS" in part and "ARG GPUS" in part]
    assert len(both) == 2, "the kernels are found by the same list when they run"
