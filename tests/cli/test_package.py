"""What `pip install` gives: one package with its configs, and the console script, which need no checkout."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from helpers import ROOT, TINY, quiet_environment

import ggcn
from ggcn.cli.main import COMMANDS

INPUTS = ("ggcn", "configs", "pyproject.toml", "README.md", "LICENSE")
"""what a wheel is made of"""


def run(*argv: object, cwd: Path, path: Path | None = None) -> str:
    """Runs a program from the folder `cwd`, with PYTHONPATH `path`, and returns what it printed."""
    environment = {key: value for key, value in quiet_environment().items() if key != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, argv)),
        cwd=cwd,
        env=environment | ({"PYTHONPATH": str(path)} if path else {}),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a wheel is made of: a build leaves files behind."""
    folder = tmp_path_factory.mktemp("sources")
    for name in INPUTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="session")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet"]
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, sources, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the wheel is installed to, next to packages of others with names of a checkout's folders."""
    folder = tmp_path_factory.mktemp("site-packages")
    pip = [sys.executable, "-m", "pip", "--quiet"]
    run(*pip, "install", "--no-deps", "--no-index", "--target", folder, wheel, cwd=folder)
    for name in ("tools", "cluster", "configs"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(
            "raise ImportError('of another project')\n", encoding="utf-8"
        )
    return folder


def test_the_wheel_holds_the_package_and_its_configs_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    info = f"ggcn-{ggcn.__version__}.dist-info"
    assert {name.partition("/")[0] for name in names} == {"ggcn", info}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "ggcn").rglob("*.py")}
    pages = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "ggcn/report/templates").iterdir()
        if path.is_file()
    }
    configs = {f"ggcn/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert {name for name in names if name.startswith("ggcn/")} == {
        *modules,
        *pages,
        *configs,
        "ggcn/py.typed",
    }


def test_every_command_works_without_a_checkout(installed: Path, tmp_path: Path) -> None:
    def call(*argv: object) -> str:
        return run(installed / "bin/ggcn", *argv, cwd=tmp_path, path=installed)

    call("make-shards", "demo:faces", "shards/faces16", "--size", 16)
    assert "no problems" in call("verify-shards", "shards/faces16")
    few = [
        "experiment=quickstart",
        *TINY,
        "engine=plain",
        "data.shards=shards/faces16",
        "train.steps=3",
        "run=one",
    ]
    assert "complete, step_00000003" in call("launch", "-m", "local", *few, "checkpoint.every=3")
    assert "complete" in call("status")
    call("sample", "runs/one", "--count", 4, "--out", "faces.png")
    call("report", "runs/one", "--out", "one.html")
    assert "step_00000003" in call("inspect", "runs/one")
    call("export", "runs/one", "--out", "one.safetensors")
    assert all((tmp_path / name).is_file() for name in ("faces.png", "one.html", "one.safetensors"))

    (copy,) = (tmp_path / "runs/one/code").iterdir()
    assert {path.name for path in copy.iterdir()} == {"ggcn", "COMMIT"}  # nothing of other projects
    probe = "from ggcn.config import compose, folders as f; compose.compose(['model=gcn']); print(f.shipped_configs())"
    assert run(sys.executable, "-c", probe, cwd=copy, path=copy).strip() == str(copy / "ggcn/configs")
    script = call("launch", "-m", "slurm", "--dry-run", *few)
    assert f"cd {copy} || exit" in script
    assert 'export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"' in script


def test_an_editable_install_reads_the_configs_of_its_checkout(sources: Path, tmp_path: Path) -> None:
    site = editable(sources, tmp_path)
    probe = "from ggcn.config.folders import shipped_configs; print(shipped_configs())"
    assert run(sys.executable, "-c", probe, cwd=tmp_path, path=site).strip() == str(sources / "configs")
    assert ggcn.__version__ in run(sys.executable, "-m", "ggcn", "--version", cwd=tmp_path, path=site)


def test_a_checkouts_scripts_run_its_own_code_where_another_checkout_is_installed(tmp_path: Path) -> None:
    other = tmp_path / "other checkout"
    (other / "ggcn").mkdir(parents=True)
    (other / "ggcn/__init__.py").write_text("print('the other checkout')\n", encoding="utf-8")
    about = '[project]\nname = "ggcn"\nversion = "9"\n[tool.setuptools]\npackages = ["ggcn"]\n'
    (other / "pyproject.toml").write_text(about, encoding="utf-8")
    site = editable(other, tmp_path)
    assert "other" in run(sys.executable, "-c", "import ggcn", cwd=tmp_path, path=site)
    for script in ("cluster/launch.py", "tools/make_shards.py"):
        assert "other checkout" not in run(sys.executable, ROOT / script, "--help", cwd=tmp_path, path=site)


def editable(checkout: Path, folder: Path) -> Path:
    """Installs a checkout editably; returns a folder that does so for processes which have it in PYTHONPATH."""
    hook = "import sys, setuptools.build_meta as backend; backend.build_editable(sys.argv[1])"
    run(sys.executable, "-c", hook, folder, cwd=checkout)
    (made,) = folder.glob("*.whl")
    with zipfile.ZipFile(made) as archive:
        archive.extractall(folder / "editable")
    start = (
        "import site, sys\n"
        "sys.meta_path[:] = [finder for finder in sys.meta_path if 'ditable' not in repr(finder)]\n"
        "for name in [name for name in sys.modules if name.startswith('__editable__')]:\n"
        "    del sys.modules[name]\n"  # its name is the same for all checkouts of a version
        f"sys.path.insert(0, {str(folder / 'editable')!r})\n"
        f"site.addsitedir({str(folder / 'editable')!r})\n"
    )
    (folder / "site").mkdir()
    (folder / "site/sitecustomize.py").write_text(start, encoding="utf-8")
    return folder / "site"


def test_help_lists_the_commands_and_imports_little(installed: Path, tmp_path: Path) -> None:
    said = run(sys.executable, "-X", "importtime", "-m", "ggcn", "--help", cwd=tmp_path, path=installed)
    lines = {args[0]: args[1:] for line in said.splitlines() if (args := line.split())}
    assert all(lines.get(name) for name in COMMANDS)
    probe = (
        "import sys; from ggcn.cli.main import parser; parser();"
        "print({'torch', 'numpy', 'hydra', 'omegaconf', 'submitit', 'yaml'} & {*sys.modules})"
    )
    assert run(sys.executable, "-c", probe, cwd=tmp_path, path=installed).strip() == "set()"


@pytest.mark.parametrize("name", ["launch", "make-shards"])
def test_a_commands_help_shows_what_to_type(name: str, installed: Path, tmp_path: Path) -> None:
    said = run(installed / "bin/ggcn", name, "--help", cwd=tmp_path, path=installed)
    assert said.startswith(f"usage: ggcn {name} ")
    assert ".py" not in said


def test_a_misspelt_command_is_one_sentence() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ggcn", "lanch"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: unknown command lanch; did you mean launch?\n"
