"""Class folders and lists as they lie on people's disks: litter, links, odd names, other systems' paths."""

from __future__ import annotations

import json
import os
import pickle
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from cl_bench import Scenario, UserError
from cl_bench.data.entry import check_data
from cl_bench.data.files import existing_file, existing_folder
from cl_bench.data.folder import FolderData, ImageFiles, class_dirs, images_below
from cl_bench.data.lists import lines_of, read_class_list, with_labels
from cl_bench.data.tensor import labels_of
from cl_bench.registry import find


def make(name: str, **kw: Any) -> Scenario:
    return find("cl_bench.scenarios", name)(**kw)


def picture(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20), (value, 90, 120)).save(path)
    return path


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """Four classes, three training images and one test image each."""
    for k, name in enumerate(("ant", "bee", "cat", "dog")):
        for i in range(3):
            picture(tmp_path / "train" / name / f"{i}.png", 40 * k + i)
        picture(tmp_path / "test" / name / "0.png", 40 * k + 9)
    return tmp_path


def split_of(root: Path, **kw: Any) -> Scenario:
    return make("split_imagenet_r", root=str(root), increment=2, size=16, resize=16, order=None, **kw)


# ---------------------------------------------------------------------------------------------- litter
def test_litter_is_no_class_and_no_image(split: Path) -> None:
    for part in ("train", "test"):
        for folder in (".ipynb_checkpoints", "__MACOSX", ".git", "@eaDir"):
            picture(split / part / folder / "0-checkpoint.png")
            picture(split / part / "ant" / folder / "x.png")
        for file in ("._0.png", ".DS_Store", "Thumbs.db", "desktop.ini", "notes.txt", "labels.csv"):
            (split / part / "ant" / file).write_bytes(b"\0\5\x16\7")
            (split / part / file).write_bytes(b"\0")
    (split / "train" / "ant" / "link.txt").symlink_to("gone.txt")
    s = split_of(split)
    assert [len(e.data) for e in s.experiences()] == [6, 6] and [len(t.data) for t in s.test_sets()] == [2, 2]  # type: ignore[arg-type]
    assert check_data(s) == []


def test_images_in_no_class_are_counted(split: Path) -> None:
    picture(split / "train" / "lost.png")
    assert check_data(split_of(split)) == ["1 images of train lie in no class folder and are left out."]


def test_all_endings_of_images_are_read(tmp_path: Path) -> None:
    for k, ending in enumerate((".jpg", ".JPEG", ".png", ".PNG", ".bmp", ".gif", ".tif", ".webp", ".ppm", ".jfif")):
        path = tmp_path / "ant" / f"{k}{ending}"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (20, 20)).save(path, "JPEG" if ending == ".jfif" else None)
    assert len(FolderData(tmp_path, size=8)) == 10
    (tmp_path / "ant" / "x.heic").write_bytes(b"x")
    with pytest.raises(UserError, match=r"x\.heic.*not read"):
        FolderData(tmp_path, size=8)


# ---------------------------------------------------------------------------------------------- links and special files
def broken(kind: str, folder: Path) -> None:
    if kind == "a circle":
        (folder / "ant" / "again").symlink_to(folder / "ant")
    elif kind == "a circle through the root":
        (folder / "ant" / "again").symlink_to(folder)
    elif kind == "a link to itself":
        (folder / "ant" / "again").symlink_to(folder / "ant" / "again")
    elif kind == "a dangling image":
        (folder / "ant" / "x.png").symlink_to("nowhere.png")
    elif kind == "a dangling folder":
        (folder / "ant" / "more").symlink_to("nowhere")
    elif kind == "a dangling class":
        (folder / "eel").symlink_to("nowhere")
    elif kind == "a pipe":
        os.mkfifo(folder / "ant" / "x.png")
    elif kind == "a socket":
        here = os.getcwd()
        os.chdir(folder / "ant")  # paths of sockets are short
        try:
            with socket.socket(socket.AF_UNIX) as s:
                s.bind("x.png")
        finally:
            os.chdir(here)
    elif kind == "a name that is not UTF-8":
        os.link(folder / "ant" / "0.png", os.fsencode(folder / "ant") + b"/\xff.png")
    elif kind == "a class that is not UTF-8":
        os.mkdir(os.fsencode(folder) + b"/\xfe")
        os.link(folder / "ant" / "0.png", os.fsencode(folder) + b"/\xfe/0.png")


@pytest.mark.parametrize(("kind", "told"), [
    ("a circle", "a circle"), ("a circle through the root", "a circle"), ("a link to itself", "in a circle"),
    ("a dangling image", "leads nowhere"), ("a dangling folder", "leads nowhere"), ("a dangling class", "leads nowhere"),
    ("a pipe", "pipe, socket or device"), ("a socket", "pipe, socket or device"),
    ("a name that is not UTF-8", "not UTF-8"), ("a class that is not UTF-8", "not UTF-8"),
])  # fmt: skip
def test_what_is_no_plain_file_is_told_in_one_sentence(split: Path, kind: str, told: str) -> None:
    broken(kind, split / "train")
    with pytest.raises(UserError, match=told) as error:
        check_data(split_of(split))
    str(error.value).encode("utf-8")  # can be printed anywhere
    assert "\n" not in str(error.value)


def test_files_that_are_pipes_or_cannot_be_are_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "labels.npy")
    with pytest.raises(UserError, match="pipe, socket or device"):
        existing_file(tmp_path / "labels.npy")
    for name in ("a" * 300, "a\0b", "none"):
        with pytest.raises(UserError, match="no file"):
            existing_file(tmp_path / name)
        with pytest.raises(UserError, match="no folder"):
            existing_folder(tmp_path / name)
    with pytest.raises(UserError, match="home of a user"):
        existing_file("~nobody-of-this-name/x")


# ---------------------------------------------------------------------------------------------- classes on two sides
def test_a_renamed_class_is_refused(split: Path) -> None:
    (split / "test" / "dog").rename(split / "test" / "Dog")
    with pytest.raises(UserError, match='"test" has class folders "Dog" that "train" has not, and lacks "dog"'):
        check_data(split_of(split))


def test_a_class_of_one_side_is_said_with_its_count(split: Path) -> None:
    for i in range(5):
        picture(split / "test" / "eel" / f"{i}.png")
    s = split_of(split)
    assert check_data(s) == ['5 images of classes that only the test folder has are left out: "eel".']
    assert sum(len(t.data) for t in s.test_sets()) == 4  # type: ignore[arg-type]
    for path in (split / "test" / "eel").iterdir():
        path.unlink()
    (split / "test" / "eel").rmdir()
    (split / "test" / "cat" / "0.png").unlink()
    (split / "test" / "cat").rmdir()
    assert check_data(split_of(split)) == [
        '1 of the 2 classes of "step 2" have no test images: 2.', "Learned and never measured: 2 (1 of 4 classes)."]
    (split / "test" / "cat").mkdir()  # a folder that is there and empty is a copy that went wrong
    with pytest.raises(UserError, match="holds no images"):
        check_data(split_of(split))


def pacs(root: Path, images: int = 5) -> Scenario:
    for domain in ("photo", "art_painting", "cartoon", "sketch"):
        for name in ("dog", "horse"):
            for i in range(images):
                picture(root / domain / name / f"{i}.png", i)
    return make("pacs", root=str(root), size=16, resize=16)


def test_a_class_of_some_domains_is_said(tmp_path: Path) -> None:
    assert check_data(pacs(tmp_path)) == []
    for i in range(5):
        picture(tmp_path / "cartoon" / "eel" / f"{i}.png")
    notes = check_data(make("pacs", root=str(tmp_path), size=16, resize=16))
    assert '1 of the 3 classes of "photo" have no training images: eel.' in notes
    assert not any("cartoon" in note for note in notes) and len(notes) == 6
    assert make("pacs", root=str(tmp_path)).space.names == ("dog", "eel", "horse"), "nothing is dropped"


def test_a_domain_with_other_classes_is_refused(tmp_path: Path) -> None:
    pacs(tmp_path)
    (tmp_path / "cartoon" / "dog").rename(tmp_path / "cartoon" / "Dog")
    with pytest.raises(UserError, match=r'"cartoon" has class folders "Dog".* lacks "dog"'):
        check_data(make("pacs", root=str(tmp_path)))


def test_one_image_of_a_class_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds one image, which cannot be split"):
        check_data(pacs(tmp_path, images=1))
    assert [len(e.data) for e in pacs(tmp_path, images=2).experiences()] == [2] * 4  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------- lists
@pytest.mark.parametrize("text", [
    "a b/1 2.png 0\nc/d.png 1\n", "a b/1 2.png\t0\r\nc/d.png\t1\r\n", "\ufeffa b/1 2.png 0\nc/d.png 1",
    "a b\\1 2.png 0\nc\\d.png 1\n", "a b/1 2.png,0\n\n  c/d.png,1  \n", "a b/1 2.png   0\rc/d.png ; 1\r",
    "./a b/1 2.png 0\nc//d.png 1\n",
], ids=["spaces", "tabs and CRLF", "BOM", "Windows", "commas", "old Mac", "dots"])  # fmt: skip
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_lists_of_images_in_every_hand(tmp_path: Path, text: str, encoding: str) -> None:
    picture(tmp_path / "a b" / "1 2.png")
    picture(tmp_path / "c" / "d.png")
    (tmp_path / "list.txt").write_bytes(text.encode(encoding))
    files, labels = with_labels(tmp_path / "list.txt", tmp_path)
    assert labels == [0, 1] and all(f.is_file() for f in files) and len(set(files)) == 2


@pytest.mark.parametrize(("line", "told"), [
    ("../outside.png 0", "leaves the folder"), ("a/../../outside.png 0", "leaves the folder"),
    ("/etc/hosts 0", "leaves the folder"), ("C:\\data\\x.png 0", "leaves the folder"),
    ("..\\outside.png 0", "leaves the folder"),
    ("a/x.png -1", "expected an image's path and its label"), ("a/x.png 0.5", "expected an image's path"),
    ("a/x.png", "expected an image's path"), ("a/x.png cat", "expected an image's path"), ("0", "expected an image's path"),
    ("a/x.png 12345678901234567890", "expected an image's path"), ("a/y.png 0", r"y\.png.*not there \(1 of 2"),
    ("a 0", "not there"), (f"a/{'x' * 300}.png 0", "not there"), (f"{'x' * 100_000} 0", "not there"),
    (f"{'x' * 100_000}", "expected an image's path"), (f"../{'x' * 100_000} 0", "leaves the folder"),
    ("a/x.png 1", r"x\.png\" label 1, where it had label 0"), ("./a//x.png 1", "label 1, where it had label 0"),
])  # fmt: skip
def test_lines_that_cannot_be_right_are_named(tmp_path: Path, line: str, told: str) -> None:
    picture(tmp_path / "root" / "a" / "x.png")
    picture(tmp_path / "outside.png")
    (tmp_path / "list.txt").write_text(f"a/x.png 0\n{line}\n")
    with pytest.raises(UserError, match=told) as error:
        with_labels(tmp_path / "list.txt", tmp_path / "root")
    assert "list.txt" in str(error.value) and len(str(error.value)) < 600


def test_texts_that_are_none(tmp_path: Path) -> None:
    for content, told in ((b"", "empty"), (b" \n\r\n", "empty"),
                          (b"\xff\xfe\xfd", "not a text file"), (b"a\0b", "not a text file"),
                          (b"\x80abc", "not a text file")):
        (tmp_path / "list.txt").write_bytes(content)
        with pytest.raises(UserError, match=told):
            lines_of(tmp_path / "list.txt")


FORMS: dict[str, tuple[str, str]] = {
    "names with spaces": ("a.txt", "alarm clock\nhot dog\ntea pot\nzebra"),
    "CRLF and BOM": ("a.txt", "\ufeffalarm clock\r\nhot dog\r\ntea pot\r\nzebra\r\n"),
    "tabs": ("a.txt", "alarm clock\tan alarm clock, x\nhot dog\ta hot dog\ntea pot\ta tea pot\nzebra\ta zebra"),
    "index": ("a.json", '{"0": ["alarm clock", "an alarm clock"], "1": ["hot dog", "y"], "2": ["tea pot", "z"], '
                        '"3": ["zebra", "w"]}'),
    "index of names": ("a.json", '{"0": "alarm clock", "1": "hot dog", "2": "tea pot", "3": "zebra"}'),
    "names to index": ("a.json", '{"zebra": 3, "hot dog": 1, "alarm clock": 0, "tea pot": 2}'),
    "array, with a BOM": ("a.json", '\ufeff["alarm clock", "hot dog", "tea pot", "zebra"]'),
}
FOLDERS = ("alarm clock", "hot dog", "tea pot", "zebra")


@pytest.mark.parametrize("form", FORMS)
def test_class_lists_in_every_form(tmp_path: Path, form: str) -> None:
    name, text = FORMS[form]
    (tmp_path / name).write_text(text, encoding="utf-8")
    labels, names = read_class_list(str(tmp_path / name), FOLDERS)
    assert labels == {f: k for k, f in enumerate(FOLDERS)}
    assert names[0] in ("alarm clock", "an alarm clock") and len(names) == 4


def test_ids_with_names_after_them(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\n")
    for folders in ((), ("n01440764", "n01443537")):
        assert read_class_list(str(tmp_path / "a.txt"), folders) == ({"n01440764": 0, "n01443537": 1}, ("tench", "goldfish"))


@pytest.mark.parametrize("content", [
    "[1, 2", "{}", "[]", '{"0": 1}', '{"1": ["a"]}', '{"0": ["a"], "2": ["b"]}', '[["a"], [3]]', "null", "[" * 100_000,
    '{"a": 0, "b": 0}', '{"0": []}',
], ids=lambda text: text[:20])  # fmt: skip
def test_class_indices_that_are_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=r"a\.json"):
        read_class_list(str(tmp_path / "a.json"))
    (tmp_path / "b.txt").write_text("a\nb\na\n")
    with pytest.raises(UserError, match='class "a" twice'):
        read_class_list(str(tmp_path / "b.txt"))


def test_a_list_that_mixes_up_classes_is_refused(tmp_path: Path) -> None:
    for domain in ("real", "clipart", "painting", "sketch"):
        for name in ("ant", "bee"):
            picture(tmp_path / domain / name / "0.png")
        lines = [f"{domain}/{name}/0.png {k}" for k, name in enumerate(("ant", "bee"))]
        (tmp_path / f"{domain}_list.txt").write_text("\n".join(lines))
    s = make("domainnet126", root=str(tmp_path))
    assert s.space.names == ("ant", "bee") and check_data(s) == []
    (tmp_path / "sketch_list.txt").write_text("sketch/ant/0.png 1\nsketch/bee/0.png 0\n")
    with pytest.raises(UserError, match=r'label \d is "(ant|bee)" in \w+ and "(ant|bee)" in \w+'):
        check_data(make("domainnet126", root=str(tmp_path)))


def test_folders_of_one_number_are_refused(tmp_path: Path) -> None:
    for name in ("1", "01", "2"):
        picture(tmp_path / name / "x.png")
    with pytest.raises(UserError, match='same number'):
        _ = make("imagenet_v2", root=str(tmp_path)).space


# ---------------------------------------------------------------------------------------------- the data set itself
def test_image_files_go_to_other_processes(split: Path) -> None:
    found = ([split / "train" / "ant" / "0.png"], [7])
    data = ImageFiles(lambda: found, split, 16, 16)
    twin = pickle.loads(pickle.dumps(data))
    assert torch.equal(twin[0][0], data[0][0]) and labels_of(twin).tolist() == [7] and twin.digest() == data.digest()


def test_a_file_that_went_away_is_told(split: Path) -> None:
    s = split_of(split)
    check_data(s)
    (split / "train" / "ant" / "0.png").unlink()
    with pytest.raises(UserError, match=r"0\.png"):
        s.protocol()
    with pytest.raises(UserError, match=r"0\.png"):
        _ = s.experiences()[0].data[0]
    with pytest.raises(UserError, match="gone"):
        class_dirs(split / "gone")
    with pytest.raises(UserError, match="gone"):
        images_below(split / "gone", split)
    with pytest.raises(UserError, match="leaves the folder"):
        FolderData(split / "train", names=["../test"])


def test_tiny_imagenet_annotations_stay_inside(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "n01" / "images" / "n01_0.JPEG")
    picture(tmp_path / "val" / "images" / "val_0.JPEG")
    (tmp_path / "val" / "val_annotations.txt").write_text("../../train/n01/images/n01_0.JPEG\tn01\n")
    with pytest.raises(UserError, match="leaves the folder"):
        check_data(make("split_tiny_imagenet", root=str(tmp_path), increment=1))


def test_class_index_is_read_whatever_its_ending(tmp_path: Path) -> None:
    (tmp_path / "INDEX.JSON").write_text(json.dumps(["a", "b"]))
    assert read_class_list(str(tmp_path / "INDEX.JSON"))[0] == {"a": 0, "b": 1}
