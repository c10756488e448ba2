"""The copy of the code that a run keeps, and what is said when code or packages change."""

import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ggcn.run import code_snapshot

Use = Callable[[Path], None]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Makes a folder the code that runs."""

    def take(root: Path) -> None:
        monkeypatch.setattr(code_snapshot, "ROOT", root)
        code_snapshot.running.cache_clear()
        code_snapshot.commit.cache_clear()

    yield take
    monkeypatch.undo()
    code_snapshot.running.cache_clear()
    code_snapshot.commit.cache_clear()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout of a few files."""
    root = tmp_path / "checkout"
    for name in ("ggcn/one.py", "ggcn/sub/two.py", "cluster/job.py", "configs/train.yaml", "pyproject.toml"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"# {name}\n", encoding="utf-8")
    return root


def files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o777])
def test_the_owner_may_write_a_copy_of_code_that_may_only_be_read(
    checkout: Path, tmp_path: Path, use: Use, umask: int
) -> None:
    paths = [checkout, *checkout.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    use(checkout)
    copy = tmp_path / "code" / code_snapshot.digest()
    old = os.umask(umask)
    try:
        code_snapshot.save(copy)
    finally:
        os.umask(old)
        for path in paths:
            path.chmod(0o755)
    assert files(copy) == files(checkout) | {code_snapshot.COMMIT}
    for path in (copy, *copy.rglob("*")):
        needed = stat.S_IRWXU if path.is_dir() else stat.S_IRUSR | stat.S_IWUSR
        assert path.stat().st_mode & needed == needed, path


def test_files_of_editors_and_crashes_are_not_copied(
    checkout: Path, tmp_path: Path, use: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(checkout)
    clean = code_snapshot.digest()
    clean_files = files(checkout)
    for name in (".one.py.swp", ".nfs0000001", "one.py~", "#one.py#", "core.4711", "__pycache__/one.pyc"):
        (checkout / "ggcn" / name).parent.mkdir(exist_ok=True)
        (checkout / "ggcn" / name).write_bytes(b"\0")
    (checkout / "ggcn/gone.py").symlink_to("/nowhere/gone.py")
    (checkout / "ggcn/around").symlink_to(checkout / "ggcn")
    monkeypatch.setattr(code_snapshot, "MAX_BYTES", 1000)
    (checkout / "ggcn/dump.bin").write_bytes(bytes(2000))
    monkeypatch.chdir(checkout / "ggcn")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
    use(checkout)
    assert code_snapshot.digest() == clean
    copy = tmp_path / "code" / clean
    code_snapshot.save(copy)
    assert files(copy) == clean_files | {code_snapshot.COMMIT}


def test_code_made_of_links_is_copied_as_files(checkout: Path, tmp_path: Path, use: Use) -> None:
    use(checkout)
    clean = code_snapshot.digest()
    farm = tmp_path / "farm"
    farm.mkdir()
    (farm / "cluster").symlink_to(checkout / "cluster")
    shutil.copytree(checkout / "configs", farm / "configs", copy_function=os.symlink)
    shutil.copytree(checkout / "ggcn", farm / "ggcn", copy_function=os.symlink)
    (farm / "pyproject.toml").symlink_to(checkout / "pyproject.toml")
    use(farm)
    assert code_snapshot.digest() == clean
    code_snapshot.save(tmp_path / "code" / clean)
    shutil.rmtree(checkout)
    assert (tmp_path / "code" / clean / "cluster/job.py").read_text(encoding="utf-8") == "# cluster/job.py\n"


def test_copies_lie_side_by_side_and_an_edited_one_is_replaced(
    checkout: Path, tmp_path: Path, use: Use
) -> None:
    code = tmp_path / "code"
    use(checkout)
    first = code_snapshot.digest()
    code_snapshot.save(code / first)
    (checkout / "ggcn/one.py").write_text("other\n", encoding="utf-8")
    use(checkout)
    second = code_snapshot.digest()
    (code / f".tmp-7-{second}").mkdir()  # left by a launcher that was killed
    code_snapshot.save(code / second)
    assert {path.name for path in code.iterdir()} == {first, second}
    assert (code / first / "ggcn/one.py").read_text(encoding="utf-8") == "# ggcn/one.py\n"
    (code / second / "ggcn/one.py").write_text("edited here\n", encoding="utf-8")
    code_snapshot.save(code / second)
    assert (code / second / "ggcn/one.py").read_text(encoding="utf-8") == "other\n"


def test_changes_are_named(checkout: Path, tmp_path: Path, use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    use(checkout)
    old = code_snapshot.facts()
    code_snapshot.save(tmp_path / "code" / old["code"])
    assert code_snapshot.changes(old, tmp_path / "code") == []
    (checkout / "ggcn/one.py").write_text("other\n", encoding="utf-8")
    (checkout / "ggcn/three.py").write_text("new\n", encoding="utf-8")
    (checkout / "cluster/job.py").unlink()
    use(checkout)
    monkeypatch.setattr(code_snapshot, "versions", lambda: {**old["versions"], "numpy": "9.9"})
    assert code_snapshot.changes(old, tmp_path / "code") == [
        f"code {old['code']} -> {code_snapshot.digest()} (cluster/job.py, ggcn/one.py, ggcn/three.py)",
        f"numpy {old['versions']['numpy']} -> 9.9",
    ]
    assert (
        code_snapshot.changes(old, tmp_path / "removed")[0]
        == f"code {old['code']} -> {code_snapshot.digest()}"
    )
    assert (
        code_snapshot.changes({"versions": {"ggcn": old["versions"]["ggcn"]}}, tmp_path) == []
    )  # an older record


def test_the_commit_is_that_of_the_code(checkout: Path, tmp_path: Path, use: Use) -> None:
    def git(*args: str) -> str:
        who = ["-c", "user.name=me", "-c", "user.email=me@x.org"]
        done = subprocess.run(["git", *who, *args], cwd=checkout, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    use(checkout)
    assert code_snapshot.commit() == {}
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    use(checkout)
    assert code_snapshot.commit() == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    clean = checkout / "runs/one/code" / code_snapshot.digest()
    code_snapshot.save(clean)
    (checkout / "ggcn/one.py").write_text("other\n", encoding="utf-8")
    use(checkout)
    assert code_snapshot.commit()["dirty"] is True
    use(clean)  # a job's ranks, whose code lies in the checkout of another commit by now
    assert code_snapshot.commit()["dirty"] is False
    (clean / code_snapshot.COMMIT).unlink()
    use(clean)
    assert code_snapshot.commit() == {}


def test_of_an_installed_package_nothing_else_is_copied(tmp_path: Path, use: Use) -> None:
    site = tmp_path / "site-packages"
    for name in ("ggcn/one.py", "ggcn/configs/train.yaml", "tools/foreign.py", "configs/foreign.yaml"):
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(f"# {name}\n", encoding="utf-8")
    use(site)
    copy = tmp_path / "code" / code_snapshot.digest()
    code_snapshot.save(copy)
    assert files(copy) == {"ggcn/one.py", "ggcn/configs/train.yaml", code_snapshot.COMMIT}
    use(copy)
    assert code_snapshot.digest() == copy.name
