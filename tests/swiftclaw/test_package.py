from __future__ import annotations

import re
import subprocess
import sys

import pytest

import swiftclaw


def test_defining_an_agent_imports_neither_ray_nor_the_client():
    code = (
        "import sys, swiftclaw; swiftclaw.Agent('a').rate_limit(requests=1);"
        "print({'ray', 'swiftclaw.client'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_the_package_has_a_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+.*|unknown", swiftclaw.__version__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'swiftclaw' has no attribute 'conect'"):
        _ = swiftclaw.conect
