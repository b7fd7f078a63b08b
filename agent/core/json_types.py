# SPDX-License-Identifier: GPL-3.0-or-later
"""The type of parsed JSON and YAML, so that the core can be typed without Any."""

from __future__ import annotations

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
JsonObject = dict[str, Json]
