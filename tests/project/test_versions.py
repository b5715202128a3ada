"""The versions that are written beside results: of what is installed, and by one function."""

import numpy

from adjoined.versions import versions


def test_what_is_not_installed_is_left_out_and_the_order_is_kept():
    found = versions("torch", "no-such-package", "numpy")
    assert list(found) == ["torch", "numpy"]
    assert found["numpy"] == numpy.__version__
    assert versions("no-such-package") == {}
