"""TensorFlow's checkpoints: what it wrote, read bit for bit; what we write, as it would; and files that are not whole."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2x.interop.openai import _their_name, described
from gpt2x.interop.pretrained import PretrainedError, parameter_shapes
from gpt2x.interop.tensorflow import Bundle, _entry, read_table, table_bytes, write_bundle

FIXTURE = Path(__file__).parent / "fixtures" / "openai"  # written by TensorFlow: write_openai_fixture.py
DATA = "model.ckpt.data-00000-of-00001"
WRITTEN = json.loads((FIXTURE / "tensorflow.json").read_text())["variables"]


@pytest.fixture
def copy(tmp_path) -> Path:
    """The fixture's folder, to be damaged."""
    return shutil.copytree(FIXTURE, tmp_path / "copy")


# -- what TensorFlow wrote ---------------------------------------------------------------------------------------


def test_every_variable_is_bit_for_bit_what_tensorflow_reads():
    bundle = Bundle(FIXTURE / "model.ckpt")
    read = {name: {"shape": list(a.shape), "sha256": hashlib.sha256(a.tobytes()).hexdigest()} for name, a in bundle.items()}
    assert len(bundle) == 28
    assert read == WRITTEN


def test_what_is_read_can_be_changed_and_the_file_stays_as_it_is(copy):
    before = (copy / DATA).read_bytes()
    array = Bundle(copy / "model.ckpt")["model/wte"]
    array += 1
    assert (copy / DATA).read_bytes() == before


def test_what_is_written_is_byte_for_byte_what_tensorflow_writes(tmp_path):
    write_bundle(tmp_path / "model.ckpt", dict(reversed([*Bundle(FIXTURE / "model.ckpt").items()])))
    for name in (DATA, "model.ckpt.index"):
        assert (tmp_path / name).read_bytes() == (FIXTURE / name).read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {DATA, "model.ckpt.index"}


@pytest.mark.parametrize(("size", "n_bytes"), [("124M", 5_215), ("355M", 10_399)])
def test_the_index_of_openai_s_own_models_would_have_the_bytes_that_it_has(size, n_bytes):
    """The sizes that are published: a checksum has four bytes, whatever it is."""
    about, offset, table = described(size), 0, [(b"", b"\x08\x01\x1a\x02\x08\x01")]
    zero = np.zeros((), "<f4")
    for theirs, ours in sorted((_their_name(name), name) for name in parameter_shapes(about)):
        shape = parameter_shapes(about)[ours]
        shape = (1, *shape[::-1]) if theirs.endswith("/w") else shape
        array = np.broadcast_to(zero, shape)
        table.append((theirs.encode(), _entry(array, offset, crc=0)))
        offset += array.nbytes
    assert len(table_bytes(table)) == n_bytes
    assert offset == {"124M": 497_759_232, "355M": 1_419_292_672}[size]


# -- anything else -----------------------------------------------------------------------------------------------

ARRAYS = st.tuples(
    st.sampled_from(["<f4", "<f8", "<i4", "<i8", "|b1", "<f2"]), st.lists(st.integers(0, 5), max_size=4), st.integers(0, 255)
).map(lambda x: np.frombuffer(bytes([x[2]]) * (8 * int(np.prod(x[1]))), x[0])[: int(np.prod(x[1]))].reshape(x[1]))


@given(st.dictionaries(st.text(min_size=1, max_size=30), ARRAYS, max_size=12))
def test_any_variables_come_back(tmp_path_factory, arrays):
    prefix = tmp_path_factory.mktemp("bundle") / "any"
    write_bundle(prefix, arrays)
    bundle = Bundle(prefix)
    assert list(bundle) == sorted(arrays, key=str.encode)
    for name, array in arrays.items():
        assert (bundle[name].dtype, bundle[name].shape) == (array.dtype, array.shape)
        assert bundle[name].tobytes() == array.tobytes()


@given(st.dictionaries(st.binary(max_size=40), st.binary(max_size=300), max_size=60), st.integers(1, 2000))
def test_any_table_comes_back_in_blocks_of_any_size(tmp_path_factory, pairs, block_size):
    path = tmp_path_factory.mktemp("table") / "any"
    path.write_bytes(table_bytes(sorted(pairs.items()), block_size))
    assert read_table(path) == sorted(pairs.items())


@given(st.data())
def test_no_damage_to_an_index_goes_unnoticed(tmp_path_factory, data):
    """Any byte that means something: the footer is filled up with zeros that mean nothing."""
    whole = (FIXTURE / "model.ckpt.index").read_bytes()
    folder = tmp_path_factory.mktemp("index")
    damaged = bytearray(whole)
    at = data.draw(st.integers(0, len(whole) - 49) | st.integers(len(whole) - 8, len(whole) - 1))
    damaged[at] ^= data.draw(st.integers(1, 255))
    (folder / "model.ckpt.index").write_bytes(damaged)
    with pytest.raises(PretrainedError, match=r"model\.ckpt\.index"):
        Bundle(folder / "model.ckpt")


# -- what is refused ---------------------------------------------------------------------------------------------


def test_a_flipped_bit_of_a_variable_is_told_by_the_variable_s_name(copy):
    data = bytearray((copy / DATA).read_bytes())
    data[50_000] ^= 1
    (copy / DATA).write_bytes(data)
    bundle = Bundle(copy / "model.ckpt")
    wrong = []
    for name in bundle:
        try:
            bundle[name]
        except PretrainedError as error:
            assert re.search(rf"{re.escape(DATA)}: {name} is damaged", str(error))
            wrong.append(name)
    assert wrong == ["model/h1/mlp/c_proj/w"]


def change(path: Path, how: Mapping | int | bytes) -> None:
    """Cut a file to a length, or put other bytes in its place, or remove it."""
    path.unlink() if how is None else path.write_bytes(how if isinstance(how, bytes) else path.read_bytes()[:how])


@pytest.mark.parametrize(
    ("file", "how", "said"),
    [
        (DATA, None, r"model\.ckpt\.data-00000-of-00001: no such file"),
        (DATA, 86_015, r"cut short: it has 86,015 bytes, and model\.ckpt\.index speaks of 86,016"),
        ("model.ckpt.index", None, r"model\.ckpt\.index: no such file"),
        ("model.ckpt.index", 900, "it does not end as one, so it is cut short or something else"),
        ("model.ckpt.index", 0, "it does not end as one"),
        ("model.ckpt.index", b"<html>" * 100, "it does not end as one"),
        ("model.ckpt.index", b"\xff" * 40 + bytes.fromhex("57fb808b2475 47db".replace(" ", "")), "damaged: "),
        ("model.ckpt.index", table_bytes([]), "not the index of a TensorFlow checkpoint"),
        ("model.ckpt.index", table_bytes([(b"", b"\x08\x01"), (b"x", b"\x08\x63")]), "type number 99"),
        ("model.ckpt.index", table_bytes([(b"", b"\x08\x01\x10\x01")]), "big-endian"),
        ("model.ckpt.index", table_bytes([(b"", b"\x08\xff\xff\xff\xff\x0f")]), r"ValueError\('4294967295 files'\)"),
        ("model.ckpt.index", table_bytes([(b"", b"\x0a\x00")]), "not the index of a TensorFlow checkpoint"),
        ("model.ckpt.index", table_bytes([(b"", b"\x08\x01"), (b"x", b"\x08\x01\x1a\x00")]), "a text where a number belongs"),
        ("model.ckpt.index", table_bytes([(b"", b"\x08\x01"), (b"x", b"\x08\x01\x28\x08")]), "of x contradicts itself"),
        ("model.ckpt.index", table_bytes([(b"", b"\x08\x01"), (b"x", b"\x08\x01\x3a\x00")]), "kept in slices"),
    ],
)
def test_what_is_missing_cut_short_or_foreign_is_told_by_name(copy, file, how, said):
    change(copy / file, how)
    with pytest.raises(PretrainedError, match=said) as error:
        Bundle(copy / "model.ckpt")
    assert str(copy) in str(error.value)


def test_a_compressed_block_is_told_though_its_checksum_is_right(tmp_path):
    from gpt2x.interop.tensorflow import _checksum

    whole = bytearray(table_bytes([(b"", b"\x08\x01")]))
    size = 3 + 2 + 8  # of the one block of keys: an entry, a restart and their count
    whole[size] = 1
    whole[size + 1 : size + 5] = _checksum(bytes(whole[: size + 1])).to_bytes(4, "little")
    (tmp_path / "x.index").write_bytes(whole)
    with pytest.raises(PretrainedError, match="a block is compressed"):
        Bundle(tmp_path / "x")


def test_a_crash_while_writing_leaves_no_checkpoint_that_could_be_taken_for_one(copy):
    class Broken(Mapping):
        def __iter__(self) -> Iterator[str]:
            return iter(["a", "b"])

        def __len__(self) -> int:
            return 2

        def __getitem__(self, name: str) -> np.ndarray:
            if name == "b":
                raise OSError("no space")
            return np.zeros(3, "<f4")

    with pytest.raises(OSError, match="no space"):
        write_bundle(copy / "model.ckpt", Broken())
    with pytest.raises(PretrainedError, match="no such file"):
        Bundle(copy / "model.ckpt")
