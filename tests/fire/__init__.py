# SPDX-License-Identifier: GPL-3.0-or-later
"""Leadership and events under fire: faults that strike between two named calls, judged by the lock table and the API's record."""
