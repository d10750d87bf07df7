"""A machine with an NVIDIA GPU, as far as this package can tell."""

from __future__ import annotations

import ctypes
import sys

import pytest

from segagent_rt.backends import cuda, driver, engine_library, session
from tests.backends import fake_cuda, fake_tensorrt
from tests.backends.fake_driver import FakeDriver


class _Ctypes:
    """ctypes, but the driver's library is the fake one, or is not there."""

    def __init__(self, found: FakeDriver | None) -> None:
        self._found = found

    def __getattr__(self, name):
        return getattr(ctypes, name)

    def CDLL(self, name):
        assert name == driver.LIBRARY
        if self._found is None:
            raise OSError(f"{name}: cannot open shared object file")
        return self._found


def plug_in(patch: pytest.MonkeyPatch, found: FakeDriver | None) -> None:
    """Put the fakes where the real libraries would be; None takes the GPU out."""
    patch.setattr(driver, "ctypes", _Ctypes(found))
    patch.setitem(sys.modules, "tensorrt", fake_tensorrt)
    patch.setitem(sys.modules, "cuda.bindings.runtime", fake_cuda)
    patch.setattr(fake_tensorrt, "trouble", fake_tensorrt.Trouble())
    fake_cuda.reset()
    forget()


def forget() -> None:
    """Clear what is asked only once in a process."""
    for function in (driver.gpu, cuda.cuda, engine_library.load_library, session._say):
        function.cache_clear()
