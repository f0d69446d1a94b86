"""What the README tells people to install is what was tested."""

from __future__ import annotations

import re

import pytest

from tests.support.workers import ROOT

pytestmark = pytest.mark.job_processing


def test_an_installation_beside_the_clone_takes_the_versions_that_were_tested() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    found = [
        line.split() for line in re.findall(r"pip install ([^#&`\n]*\.\./rustfs-workers[^#&`\n]*)", readme)
    ]
    assert found == [
        ["--require-hashes", "-r", "../rustfs-workers/requirements.lock"],
        ["--no-deps", "../rustfs-workers"],
    ]
    assert "--hash=sha256:" in (ROOT / "requirements.lock").read_text("utf-8")
