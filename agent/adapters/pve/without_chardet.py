# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeps chardet out of the process: PVE answers in UTF-8, and nobody here asks requests to guess."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_chardet() -> Iterator[None]:
    """While this lasts, requests is imported as where chardet is not installed: 3 MiB of tables less.

    It then falls back on charset-normalizer, on which Debian's package depends, too; without that, or where chardet is loaded already,
    nothing is kept out. Debian 12 has a newer one than its requests was made for, and as the fallback requests warns of it.
    """
    if "chardet" in sys.modules or importlib.util.find_spec("charset_normalizer") is None:
        yield
        return
    sys.modules["chardet"] = None  # type: ignore[assignment]  # Python's own way to say that there is none
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*doesn't match a supported version")
            yield
    finally:
        del sys.modules["chardet"]
