"""Loads the kit, for every suite."""

import pytest

pytest.register_assert_rewrite("kit")
pytest_plugins = ["kit.plugin"]
