import functools
import gzip
import hashlib
import http.server
import io
import pickle
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from published_files import idx, publish, write_idx_files
from torchvision import datasets as published_sets

from training import datasets
from training.dataset_folders import Pictures
from training.dataset_sources import SOURCES, SourceError, Split, published
from training.datasets import DatasetError

CLOSED = "http://127.0.0.1:9/"  # the discard port: refused at once
TRAIN = np.arange(5 * 784, dtype=np.int64).astype(np.uint8).reshape(5, 28, 28)
TEST = 255 - TRAIN[:3]


def write_both(folder: Path, *, zipped: bool = True) -> Path:
    for part, images in (("train", TRAIN), ("t10k", TEST)):
        write_idx_files(folder, part, images, np.arange(len(images)), zipped=zipped)
    return folder


@pytest.fixture
def tiny(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of `write_both` are the published ones, of both sets."""
    folder = write_both(tmp_path_factory.mktemp("tiny"))
    publish("mnist", folder, monkeypatch)
    publish("fashion-mnist", folder, monkeypatch)


def all_of(pictures: Pictures) -> tuple[np.ndarray, np.ndarray | None]:
    batches = list(pictures.batches)
    images = np.concatenate([batch.images for batch in batches])
    assert len(images) + sum(len(batch.skipped) for batch in batches) == pictures.num_files
    labels = [batch.labels for batch in batches if batch.labels is not None]
    return images, np.concatenate(labels) if labels else None


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published_sets.MNIST, "mirrors", [CLOSED])
    monkeypatch.setattr(published_sets.FashionMNIST, "mirrors", [CLOSED])
    monkeypatch.setattr(published_sets.CIFAR10, "url", CLOSED)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # which gdown follows, with which torchvision fetches CelebA


# --- IDX files ----------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_network", "tiny")
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(("name", "place"), [("mnist", "."), ("mnist", "MNIST/raw"), ("fashion-mnist", "FashionMNIST/raw")])
def test_idx_files_at_hand_are_read_where_they_lie(tmp_path: Path, name: str, place: str, zipped: bool) -> None:
    write_both(tmp_path / place, zipped=zipped)
    pictures = published(name, tmp_path)
    images, labels = all_of(pictures)
    assert np.array_equal(images, TRAIN[:, None])
    assert labels is not None
    assert labels.tolist() == [0, 1, 2, 3, 4]
    assert pictures.about.class_names == SOURCES[name].class_names
    assert pictures.about.licence == SOURCES[name].licence


@pytest.mark.usefixtures("no_network", "tiny")
@pytest.mark.parametrize(("split", "expected"), [("train", [TRAIN]), ("test", [TEST]), ("all", [TRAIN, TEST])])
def test_a_split_can_be_chosen(tmp_path: Path, split: Split, expected: list[np.ndarray]) -> None:
    images, labels = all_of(published("mnist", write_both(tmp_path), split=split))
    assert np.array_equal(images[:, 0], np.concatenate(expected))
    assert labels is not None
    assert labels.tolist() == [index for part in expected for index in range(len(part))]


@pytest.mark.usefixtures("no_network", "tiny")
def test_the_training_files_alone_are_enough_for_the_training_split(tmp_path: Path) -> None:
    write_both(tmp_path)
    for path in tmp_path.glob("t10k-*"):
        path.unlink()
    assert published("mnist", tmp_path).num_files == 5


@pytest.mark.usefixtures("tiny")
def test_another_size_is_resampled(tmp_path: Path) -> None:
    pictures = published("mnist", write_both(tmp_path), size=32)
    images, _ = all_of(pictures)
    assert pictures.about.shape == (1, 32, 32)
    expected = Image.fromarray(TRAIN[0]).resize((32, 32), Image.Resampling.LANCZOS)
    assert np.array_equal(images[0, 0], np.asarray(expected))


@pytest.mark.usefixtures("tiny")
def test_a_published_set_can_be_registered_and_loaded(tmp_path: Path) -> None:
    pictures = published("fashion-mnist", write_both(tmp_path))
    datasets.write("fashion-mnist", tmp_path / "sets", pictures.about, pictures.batches)
    loaded = datasets.load("fashion-mnist", tmp_path / "sets")
    assert loaded.card.source == "https://github.com/zalandoresearch/fashion-mnist"
    assert np.array_equal(loaded.images[:, 0], TRAIN)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (gzip.compress(idx(TRAIN))[:-20], r"is damaged or cut off \(.*\): fetch it again"),
        (b"<html>not found</html>", r"is damaged or cut off \(.*\): fetch it again"),
        (gzip.compress(b""), "is not train-images-idx3-ubyte of mnist"),
        (gzip.compress(idx(TRAIN)[:-1]), "is not train-images-idx3-ubyte of mnist"),
        (gzip.compress(idx(TRAIN[:, ::-1])), "is not train-images-idx3-ubyte of mnist"),
    ],
    ids=["cut off", "a page", "empty", "too short", "mirrored"],  # there is a time in what gzip makes
)
def test_a_damaged_idx_file_is_named_with_what_to_do(tmp_path: Path, data: bytes, reason: str) -> None:
    (write_both(tmp_path) / "train-images-idx3-ubyte.gz").write_bytes(data)
    with pytest.raises(SourceError, match=rf"train-images-idx3-ubyte\.gz {reason}"):
        published("mnist", tmp_path)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("array", [np.arange(4), np.full(5, 10), np.arange(5)[::-1], TRAIN])
def test_labels_that_were_not_published_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    write_idx_files(tmp_path, "train", TRAIN, array)
    with pytest.raises(SourceError) as error:
        published("mnist", tmp_path)
    digests = [hashlib.sha256(idx(labels)).hexdigest() for labels in (array, np.arange(5))]
    assert str(error.value) == (
        f"{tmp_path / 'train-labels-idx1-ubyte.gz'} is not train-labels-idx1-ubyte of mnist: unpacked, it has the sha256 {digests[0]},"
        f" and {digests[1]} was published; fetch it from {SOURCES['mnist'].address}"
    )


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_fashion_mnist_are_not_taken_for_mnist(tmp_path: Path, zipped: bool) -> None:
    """The built-in set is Fashion-MNIST's own test part."""
    built_in = datasets.load("fashion-mnist-10k", tmp_path)
    assert built_in.labels is not None
    write_idx_files(tmp_path, "t10k", built_in.images[:, 0], built_in.labels, zipped=zipped)
    assert published("fashion-mnist", tmp_path, split="test").num_files == 10_000
    with pytest.raises(SourceError, match=r"t10k-images-idx3-ubyte(\.gz)? is not .* of mnist but of fashion-mnist: "):
        published("mnist", tmp_path, split="test")


# --- downloads ----------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("name", "files", "place"),
    [
        ("mnist", "train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz", "MNIST/raw"),
        ("fashion-mnist", "train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz", "FashionMNIST/raw"),
        ("cifar10", "cifar-10-python.tar.gz", ""),
        ("celeba", "img_align_celeba.zip", "celeba"),
    ],
)
def test_without_a_network_one_sentence_says_which_file_to_put_where(tmp_path: Path, name: str, files: str, place: str) -> None:
    with pytest.raises(SourceError) as error:
        published(name, tmp_path)
    sentence = str(error.value)
    assert sentence.startswith(f"{name} cannot be downloaded (")
    assert f"): put {files}, to be had from {SOURCES[name].address}, into {tmp_path / place}, " in sentence
    assert sentence.endswith(f"and add it again with --data-dir {tmp_path}")
    assert "\n" not in sentence
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that a real server on this host gives to torchvision as MNIST's mirror, checksums and all."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the library's name
            pass

    folder = write_both(tmp_path / "mirror")
    checksums = [(path.name, hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()) for path in sorted(folder.iterdir())]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setattr(published_sets.MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        monkeypatch.setattr(published_sets.MNIST, "resources", checksums)
        yield folder
        server.shutdown()
        thread.join()


@pytest.mark.usefixtures("tiny")
def test_a_download_is_kept_and_not_repeated(tmp_path: Path, mirror: Path) -> None:
    root = tmp_path / "downloads"
    images, _ = all_of(published("mnist", root))
    assert np.array_equal(images[:, 0], TRAIN)
    assert sorted(path.name for path in (root / "MNIST" / "raw").iterdir()) == sorted(path.name for path in mirror.iterdir())
    for path in mirror.iterdir():
        path.unlink()
    assert published("mnist", root).num_files == 5


def test_a_download_with_a_wrong_checksum_is_refused_and_not_kept(tmp_path: Path, mirror: Path) -> None:
    (mirror / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(TRAIN + 1)))
    with pytest.raises(SourceError, match="mnist cannot be downloaded"):
        published("mnist", tmp_path / "downloads")
    assert list((tmp_path / "downloads").iterdir()) == []


# --- CIFAR-10 -----------------------------------------------------------------------------------------------------------------


def write_cifar(folder: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Two images a published batch, under checksums of their own; gives the images as (12, 3, 32, 32), the test batch last."""
    images = np.random.default_rng(0).integers(0, 256, (12, 3, 32, 32), dtype=np.uint8)
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    contents: dict[str, dict[str, object]] = {
        name: {"data": images[2 * index : 2 * index + 2].reshape(2, -1), "labels": [index, 9]} for index, name in enumerate(names)
    }
    contents["batches.meta"] = {"label_names": [str(number) for number in range(10)]}
    (folder / "cifar-10-batches-py").mkdir(parents=True)
    checksums = []
    for name, content in contents.items():
        data = pickle.dumps(content)
        (folder / "cifar-10-batches-py" / name).write_bytes(data)
        checksums.append([name, hashlib.md5(data, usedforsecurity=False).hexdigest()])
    monkeypatch.setattr(published_sets.CIFAR10, "train_list", checksums[:5])
    monkeypatch.setattr(published_sets.CIFAR10, "test_list", checksums[5:6])
    monkeypatch.setattr(published_sets.CIFAR10, "meta", published_sets.CIFAR10.meta | {"md5": checksums[6][1]})
    return images


@pytest.mark.usefixtures("no_network")
def test_cifar10_is_read_from_files_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = write_cifar(tmp_path, monkeypatch)
    images, labels = all_of(published("cifar10", tmp_path))
    assert np.array_equal(images, expected[:10])
    assert labels is not None
    assert labels.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]
    assert np.array_equal(all_of(published("cifar10", tmp_path, split="test"))[0], expected[10:])
    assert np.array_equal(all_of(published("cifar10", tmp_path, split="all"))[0], expected)


@pytest.mark.usefixtures("no_network")
def test_cifar10_with_a_wrong_checksum_is_not_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, monkeypatch)

    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "sprung",)

    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(SourceError, match=r"cifar10 cannot be downloaded"):
        published("cifar10", tmp_path)
    assert not (tmp_path / "sprung").exists()


# --- CelebA -------------------------------------------------------------------------------------------------------------------


def face(shade: int) -> bytes:
    """An aligned picture: white, but for the 148 x 148 pixels at its centre."""
    image = Image.new("RGB", (178, 218), "white")
    image.paste((shade,) * 3, (15, 35, 163, 183))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=100)
    return file.getvalue()


def write_faces(root: Path, place: str, zipped: bool) -> None:
    (root / place).mkdir(parents=True, exist_ok=True)
    faces = {"000002.jpg": face(200), "000001.jpg": face(100), "000003.jpg": face(0)[:400]}
    if not zipped:
        (root / place / "img_align_celeba").mkdir()
        for name, data in faces.items():
            (root / place / "img_align_celeba" / name).write_bytes(data)
        return
    with zipfile.ZipFile(root / place / "img_align_celeba.zip", "w") as archive:
        for name, data in faces.items():
            archive.writestr(f"img_align_celeba/{name}", data)


@pytest.mark.parametrize("place", [".", "celeba"])
@pytest.mark.parametrize("zipped", [True, False])
def test_celeba_is_cropped_to_the_face_and_a_damaged_picture_is_left_out(tmp_path: Path, place: str, zipped: bool) -> None:
    write_faces(tmp_path, place, zipped)
    pictures = published("celeba", tmp_path)
    card = datasets.write("celeba", tmp_path / "sets", pictures.about, pictures.batches)
    images = datasets.load("celeba", tmp_path / "sets").images
    assert images.shape == (2, 3, 64, 64)
    assert np.abs(images[:, :, 2:-2, 2:-2] - np.array([100.0, 200.0]).reshape(2, 1, 1, 1)).max() < 4
    assert images[0].mean() < 102  # nothing of the white border
    assert len(card.skipped) == 1
    assert "000003.jpg: this picture is damaged or cut off" in card.skipped[0]


def test_a_byte_that_rotted_in_celebas_archive_leaves_one_picture_out(tmp_path: Path) -> None:
    write_faces(tmp_path, ".", zipped=True)
    path = tmp_path / "img_align_celeba.zip"
    data = bytearray(path.read_bytes())
    data[300] ^= 1  # in the first picture, which is stored as it is
    path.write_bytes(data)
    batch = next(iter(published("celeba", tmp_path).batches))
    assert len(batch.images) == 1
    assert any("Bad CRC-32" in sentence for sentence in batch.skipped)


def test_an_archive_that_is_cut_off_says_what_to_do(tmp_path: Path) -> None:
    write_faces(tmp_path, ".", zipped=True)
    path = tmp_path / "img_align_celeba.zip"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(SourceError, match=r"img_align_celeba\.zip is damaged or cut off .*: fetch it again"):
        published("celeba", tmp_path)


# --- arguments ----------------------------------------------------------------------------------------------------------------


def test_wrong_arguments_are_refused_with_what_is_allowed(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no published set 'svhn'; known: mnist, fashion-mnist, cifar10, celeba; a folder"):
        published("svhn", tmp_path)
    with pytest.raises(DatasetError, match="celeba is taken whole; leave out the split 'train'"):
        published("celeba", tmp_path, split="train")
    with pytest.raises(DatasetError, match="size 0 is not allowed: give 4 to 1024"):
        published("mnist", tmp_path, size=0)
