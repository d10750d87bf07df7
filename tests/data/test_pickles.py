"""Pickles are read without running anything, in bounded time and memory, whoever wrote them."""

from __future__ import annotations

import io
import pickle

import pytest

from segagent_rt.data import pickles
from segagent_rt.data.pickles import BoundedUnpickler
from segagent_rt.data.sources import Places, open_data
from segagent_rt.errors import DataInvalid
from tests.data.datasets import refer

PLAIN = [{"sent_id": 1, "tokens": ["the", "man"], "raw": "caf\xe9", 7: (1.5, None, True, 1 << 70)}]


def load(content, **how):
    return BoundedUnpickler(io.BytesIO(content), **how).load()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_of_every_protocol_is_read(protocol):
    assert load(pickle.dumps(PLAIN, protocol)) == PLAIN


def test_texts_of_python_2_are_read():
    """As REFER's own files have them: protocol 0, texts as bytes."""
    content = b"(lp0\n(dp1\nS'raw'\np2\nS'caf\\xe9'\np3\nsS'n'\np4\nL12L\nsa."
    assert load(content, encoding="latin1") == [{"raw": "caf\xe9", "n": 12}]


def number_of_one_hash(at: int) -> bytes:
    """LONG1 of a multiple of 2 ** 61 - 1: Python gives all of them the hash 0."""
    return b"\x8a\x0a" + (at * ((1 << 61) - 1)).to_bytes(10, "little")


BOMBS = {
    "hash of 2 ** 40 nested tuples, 88 bytes": b"\x80\x02})" + b"2\x86" * 40 + b"K\x01s.",
    "hash of 300,000 tuples inside of each other": (
        b"\x80\x02})" + b"\x85" * 300_000 + b"K\x01s."),
    "such a tuple in a set": b"\x80\x04\x8f()" + b"2\x86" * 40 + b"\x90.",
    "such a tuple in a frozen set": b"\x80\x04()" + b"2\x86" * 40 + b"\x91.",
    "numbers of one hash": (
        b"\x80\x02}(" + b"".join(number_of_one_hash(n) + b"N" for n in range(1, 100_000)) + b"u."),
    "a memo of a terabyte": b"\x80\x02]r\xff\xff\xff\xff0h\x00.",
    "bytes of a terabyte": b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little") + b".",
    "an array of a terabyte": b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b".",
    "lists of 2 ** 60 items": (
        b"\x80\x02]q\x00"
        + b"".join(b"](h%ch%ceq%c" % (n, n, n + 1) for n in range(60)) + b"."),
    "ten thousand lists inside of each other": b"\x80\x02" + b"]" * 10_000 + b"a" * 9_999 + b".",
    "a list that contains itself": b"\x80\x02]q\x00h\x00a.",
    "a call": b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.",
    "a reference to elsewhere": b"\x80\x02K\x01Q.",
    "an extension": b"\x80\x02\x82\x01.",
    "a number of too many digits": b"L" + b"9" * 1_000_000 + b"L\n.",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_at_once(tmp_path, name):
    refer(tmp_path)
    (tmp_path / "refcocog" / "refs(umd).p").write_bytes(BOMBS[name])
    with pytest.raises(DataInvalid, match="not a pickle of plain data") as caught:
        open_data("refcocog_test", Places(tmp_path))
    assert "\n" not in str(caught.value)


def test_containers_are_counted(monkeypatch):
    monkeypatch.setattr(pickles, "MOST_CONTAINERS", 1000)
    with pytest.raises(pickle.UnpicklingError, match="more lists"):
        load(b"(" + b"}" * 1001 + b"l.")
