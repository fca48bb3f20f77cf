"""Links in a data set's folder: followed within it and to where the user says, refused elsewhere, by every scenario."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from folder_toys import MAKERS, picture

from cl_bench import Scenario, UserError
from cl_bench.command.config import parse
from cl_bench.data.entry import check_data
from cl_bench.data.folder import FolderData
from cl_bench.registry import find


def make(name: str, **kw: object) -> Scenario:
    return find("cl_bench.scenarios", name)(**kw)


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """Four classes, three training images and one test image each."""
    for part, n in (("train", 3), ("test", 1)):
        for k, name in enumerate(("ant", "bee", "cat", "dog")):
            for i in range(n):
                picture(tmp_path / part / name / f"{i}.png", 40 * k + i)
    return tmp_path


def split_of(root: Path) -> Scenario:
    return make("split_imagenet_r", root=str(root), increment=2, size=16, resize=16, order=None)


def linked(tmp_path: Path) -> Path:
    """A subset of a data set as a folder of links: a class, an image, a folder in a class."""
    picture(tmp_path / "store" / "n01" / "a.png", 1)
    picture(tmp_path / "store" / "b.png", 2)
    (tmp_path / "root" / "cat").mkdir(parents=True)
    (tmp_path / "root" / "ant").symlink_to(tmp_path / "store" / "n01")
    (tmp_path / "root" / "cat" / "b.png").symlink_to(tmp_path / "store" / "b.png")
    (tmp_path / "root" / "cat" / "deeper").symlink_to(tmp_path / "store" / "n01")
    return tmp_path / "root"


def test_links_are_followed_where_the_user_says_that_they_may_lead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = linked(tmp_path)
    with pytest.raises(UserError, match=r'"[^"]*ant" is a link, .*out of "[^"]*root": .*CL_BENCH_LINKS\.$'):
        FolderData(root, size=8)
    for named in (tmp_path / "store", tmp_path, f"{tmp_path / 'other'}{os.pathsep}{tmp_path / 'store'}"):
        monkeypatch.setenv("CL_BENCH_LINKS", str(named))
        data = FolderData(root, size=8)
        assert data.names == ("ant", "cat") and data.y.tolist() == [0, 1, 1]
    monkeypatch.setenv("CL_BENCH_LINKS", str(tmp_path / "sto"))  # a folder of another name
    with pytest.raises(UserError, match="CL_BENCH_LINKS"):
        FolderData(root, size=8)


@pytest.mark.parametrize("leave", ["ant", "cat/b.png", "cat/deeper"])
def test_each_kind_of_link_out_of_the_root_is_refused(tmp_path: Path, leave: str) -> None:
    root = linked(tmp_path)
    for name in {"ant", "cat/b.png", "cat/deeper"} - {leave}:
        (root / name).unlink()
    picture(root / "cat" / "a.png", 3)
    with pytest.raises(UserError, match=f'"[^"]*{leave}" is a link'):
        FolderData(root, size=8)


def test_what_a_link_out_of_the_root_leads_to_is_not_gone_through(split: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (split / "train" / "ant" / "everything").symlink_to("/")
    scan, seen = os.scandir, list[str]()
    monkeypatch.setattr(os, "scandir", lambda path: (seen.append(os.fspath(path)), scan(path))[1])
    with pytest.raises(UserError, match="everything"):
        check_data(split_of(split))
    assert seen and not [path for path in seen if "everything" in path]


def test_links_within_the_root_and_a_root_that_is_a_link_are_followed(split: Path, tmp_path: Path) -> None:
    (split / "train" / "eel").symlink_to("ant")
    (split / "test" / "eel").symlink_to("../train/eel")
    (split / "test" / "ant" / "again.png").symlink_to("0.png")
    elsewhere = tmp_path.with_name(f"{tmp_path.name}-link")
    elsewhere.symlink_to(split)
    assert check_data(split_of(elsewhere)) == []
    assert [len(t.data) for t in split_of(elsewhere).test_sets()] == [3, 2, 3]  # type: ignore[arg-type]


def test_a_snapshot_of_the_hubs_cache_is_one_data_set(tmp_path: Path) -> None:
    """huggingface_hub keeps files in blobs and links to them."""
    at, blobs = tmp_path / "datasets--a--b" / "snapshots" / "0123", tmp_path / "datasets--a--b" / "blobs"
    picture(blobs / "x.png", 1)
    (blobs / "x.png").rename(blobs / "5eed")
    (at / "data" / "ant").mkdir(parents=True)
    (at / "data" / "ant" / "x.png").symlink_to("../../../../blobs/5eed")
    assert len(FolderData(at / "data", size=8)) == 1
    picture(tmp_path / "y.png", 1)
    (at / "data" / "ant" / "y.png").symlink_to(tmp_path / "y.png")
    with pytest.raises(UserError, match="leads out"):
        FolderData(at / "data", size=8)


@pytest.mark.parametrize("make_data", MAKERS, ids=lambda m: m.__name__)
def test_no_scenario_follows_a_link_out_of_its_root(tmp_path: Path, make_data: Callable[[Path], list[str]]) -> None:
    """Of every folder the first file, and every folder itself, in turn lies elsewhere and has left a link."""
    data = tmp_path / "data"
    data.mkdir()
    name, *argv = make_data(data)
    config = parse(["--scenario", name, *argv, "--method", "ncm"])["scenario"]["init_args"]
    named = {Path(v) for v in argv if v.startswith(str(data))} | {data}
    find("cl_bench.scenarios", name)(**config).protocol()
    found = sorted(data.rglob("*"))
    tried = {(path.parent, path.suffix): path for path in reversed(found)}.values()
    tried = {*tried, *(path for path in found if path.is_dir())}
    for path in sorted(set(tried) - named):
        if name == "domainnet126" and "infograph" in str(path):
            continue  # one of the other scenario's domains
        path.rename(tmp_path / "away")
        path.symlink_to(tmp_path / "away")
        with pytest.raises(UserError, match="leads out of"):
            scenario = find("cl_bench.scenarios", name)(**config)
            check_data(scenario)
            scenario.protocol()
        path.unlink()
        (tmp_path / "away").rename(path)
